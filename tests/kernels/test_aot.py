"""Kernels compile for GPUs that are not here, fit into them, and keep their inner loop free of spills.

Compiling and interpreting exclude each other in one process, so the compiler runs in processes of its own.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from headforce.cli import main
from headforce.errors import HeadforceError
from headforce.lowering import gate
from headforce.lowering.gate import compiled, spec_for

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_DEFAULT_FP_FUSION": "1"}


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check_kernel(kernel, folder):
    assert kernel["fits"]
    assert kernel["inner_spills"] == 0, kernel
    assert (folder / kernel["source"]).read_text().startswith('"""')
    assert (folder / kernel["binary"]).stat().st_size > 1000
    if kernel["kernel"].endswith("attention") and kernel["dtype"] != "fp32":
        assert kernel["matrix"] > 0  # on tensor cores


@pytest.mark.parametrize(
    ("dtype", "head_dim", "count"), [pytest.param("bfloat16", 128, 6, marks=pytest.mark.slow), ("float32", 64, 4)]
)
def test_every_kernel_for_hopper(dtype, head_dim, count, tmp_path):
    choice = ["--arch", "sm90", "--dtype", dtype, "--head-dim", str(head_dim)]
    done = run("-m", "headforce", "kernels", "--aot", *choice, "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == count
    for kernel in report:
        check_kernel(kernel, tmp_path)
        if kernel["kernel"].endswith("attention") and kernel["dtype"] == "bf16":
            check_loop_on_hopper(kernel)


@pytest.mark.slow
def test_every_kernel_compiles_and_fits(tmp_path):
    """With rotation, which takes more registers than without."""
    architectures = ["sm80", "sm89", "sm100", "sm120", "gfx942"]
    code = f"""
import json, pathlib, torch
from headforce.lowering.gate import all_kernels, compiled, save
wanted = all_kernels({architectures}, [torch.bfloat16], [128])
made = [compiled(*k) for k in wanted if k[1].rotation]
print(json.dumps(save(made, pathlib.Path({str(tmp_path)!r}))))
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = {"ragged_attention", "combine_parts", "rotate_and_write"}
    assert {(k["kernel"], k["architecture"]) for k in report} == {
        (name, arch) for name in names for arch in architectures
    }
    for kernel in report:
        check_kernel(kernel, tmp_path)


def check_loop_on_hopper(kernel):
    """Of 128 x BLOCK_N x 128: eight wgmma for the scores of a group, and one for each 16 rows of values.

    The portable kernel loads both tiles in its loop. That for Hopper leaves loads to another warp, and starts the next
    scores before the exponentials: they stand between the products, with no wait among them.
    """
    counted = re.findall(r"([A-Za-z])(\d+)", kernel["order"])
    count = {sign: sum(int(n) for s, n in counted if s == sign) for sign in "GTe"}
    hopper = kernel["kernel"] == "hopper_attention"
    rows = kernel["config"]["block_n"]
    assert count["G"] == 8 + rows // 16
    assert count["e"] >= rows // 2
    assert count["T"] == (0 if hopper else 2)
    assert kernel["loop"] < 6 * rows
    if hopper:
        products = "".join(sign for sign, _ in counted if sign in "Gew")
        assert re.fullmatch(r"Ge+Gww", products)


@pytest.mark.slow
def test_spills_in_the_inner_loop_would_be_seen():
    code = """
import torch
from headforce.kernels.config import Config
from headforce.lowering.gate import compiled, spec_for
spec = spec_for("ragged_attention", "sm90", torch.bfloat16, 128, rotated=False, config=Config(128, 128, 4, 2))
print(compiled("ragged_attention", spec, "sm90").code.inner_spills)
"""
    done = run("-c", code)
    assert int(done.stdout) > 0, done.stderr


@pytest.mark.slow
def test_what_a_policy_does_not_need_is_not_in_its_kernel():
    code = """
import json, torch
from dataclasses import replace
from headforce.lowering.gate import compiled, spec_for
chosen = "ragged_attention", "sm90", torch.bfloat16, 64
plain = spec_for(*chosen, rotated=False)
for spec in (plain, spec_for(*chosen), replace(plain, parts=False), replace(plain, lse=True)):
    ttir = compiled("ragged_attention", spec, "sm90").ir
    signature = ttir.split("attributes", 1)[0]
    print(json.dumps(["math.floor" in ttir, "f64" in ttir, "%part_out" in signature, "%lse" in signature]))
"""
    done = run("-c", code)
    plain, rotated, whole, lse = map(json.loads, done.stdout.splitlines())
    assert plain == [False, False, True, False]
    assert rotated == [True, True, True, False]
    assert whole == [False, False, False, False]
    assert lse == [False, False, True, True]


def test_interpreted_kernels_are_not_compiled():
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        compiled("ragged_attention", spec_for("ragged_attention", "sm90", torch.bfloat16, 64), "sm90")


def test_sources_alone(tmp_path):
    choice = ["--arch", "sm90", "--dtype", "float16", "--head-dim", "64", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, ["kernels", "--sources", *choice])
    assert done.exit_code == 0, done.output
    names = {Path(line).name for line in done.output.splitlines()}
    assert names == {file.name for file in tmp_path.iterdir()}
    assert "hopper_attention_sm90_fp16_64_rotated.py" in names
    assert len(names) == 6
    assert CliRunner().invoke(main, ["kernels", "--sources"]).exit_code == 2


@pytest.mark.parametrize("what", ["--aot", "--sources"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, what):
    def work(*_):
        raise AssertionError("nothing may be made")

    monkeypatch.setattr(gate, "compiled", work)
    monkeypatch.setattr(gate, "save_sources", work)
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["kernels", what, "--arch", "sm90", "--out", str(tmp_path / "file")])
    assert done.exit_code == 2, done.output
    assert "HF-OPTION" in done.stderr


def test_sources_appear_when_all_are_there(tmp_path, monkeypatch):
    def source_of(kernel, spec):
        if kernel == "rotate_and_write":
            raise KeyboardInterrupt
        return "whole"

    monkeypatch.setattr(gate, "source_of", source_of)
    CliRunner().invoke(main, ["kernels", "--sources", "--arch", "sm80", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture():
    done = CliRunner().invoke(main, ["kernels", "--arch", "sm35"])
    assert done.exit_code == 2
    assert "HF-KERNEL" in done.output
