"""Kernels compile for GPUs that are not here, fit into them, and keep their inner loop free of spills.

Compiling and interpreting exclude each other in one process, so the compiler runs in processes of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.kernels.aot import compile_attention

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


@pytest.mark.parametrize("architecture", ["sm80", "sm89", "sm90", "sm100", "sm120", "gfx942"])
def test_every_kernel_compiles_and_fits(architecture, tmp_path):
    choice = ["--arch", architecture, "--dtype", "bfloat16", "--head-dim", "128", "--out", str(tmp_path), "--json"]
    if architecture == "sm90":
        choice += ["--dtype", "float32"]
    done = run("-m", "headforce", "kernels", *choice)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == 3 * (2 if architecture == "sm90" else 1)
    for kernel in report:
        assert kernel["fits"]
        assert kernel["inner_spills"] == 0, kernel
        assert (tmp_path / kernel["binary"]).stat().st_size > 1000
        if kernel["kernel"] == "ragged_attention" and kernel["dtype"] != "fp32":
            assert kernel["matrix"] > 0  # on tensor cores


def test_spills_in_the_inner_loop_would_be_seen():
    code = """
import torch
from headforce.kernels.aot import compile_attention
from headforce.kernels.config import Config
print(compile_attention("sm90", torch.bfloat16, 128, config=Config(128, 128, 4, 2)).inner_spills)
"""
    done = run("-c", code)
    assert int(done.stdout) > 0, done.stderr


def test_what_a_policy_does_not_need_is_not_in_its_kernel():
    code = """
import torch
from headforce.kernels import aot
texts = []
compile_ = aot.triton.compile
aot.triton.compile = lambda *a, **k: texts.append(compile_(*a, **k)) or texts[-1]
for rotated in (False, True):
    aot.compile_attention("sm90", torch.bfloat16, 64, rotated=rotated)
print([("math.cos" in t.asm["ttir"], "f64" in t.asm["ttir"].split("{", 1)[1]) for t in texts])
"""
    done = run("-c", code)
    first, second = json.loads(done.stdout.replace("(", "[").replace(")", "]").replace("T", "t").replace("F", "f"))
    assert first[0] is False
    assert second == [True, True]


def test_interpreted_kernels_are_not_compiled():
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        compile_attention("sm90", torch.bfloat16, 64)


def test_an_unknown_architecture():
    done = run("-m", "headforce", "kernels", "--arch", "sm35")
    assert done.returncode == 2
    assert "HF-KERNEL" in done.stderr
