"""`headforce demo` on the tiny model: what it reports, what it writes, and how it fails."""

import io
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from headforce.cli import main
from headforce.demo import Settings, demo, run_demo
from headforce.demo.checks import run_checks
from headforce.demo.example import load_example
from headforce.demo.table import table
from headforce.errors import HeadforceError
from headforce.lowering.targets import target
from headforce.lowering.targets.sdpa import sdpa

TINY = ["--preset", "tiny", "--inner", "eager", "--chunks", "4", "--threads", "1"]
KEYS = ["version", "made_with", "model", "rollout", "compile", "policy", "sides", "bytes", "errors", "structure",
        "checks", "pictures"]  # fmt: skip


def run(out, *options, code=0):
    result = CliRunner().invoke(main, ["demo", *TINY, "--out", str(out), *map(str, options)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, what was measured, the command's result) of one run; checks are asked while its caches still live."""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_checks", lambda measured: kept.append(measured) or run_checks(measured))
        folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
        result = run(folder, "--json")
    return folder, kept[0], result


@pytest.fixture
def report(finished):
    return json.loads((finished[0] / "report.json").read_text())


def test_the_report_is_whole_and_true(report):
    assert list(report) == KEYS
    assert all(check["holds"] and check["sentence"].endswith(".") for check in report["checks"])
    assert len({check["name"] for check in report["checks"]}) == len(report["checks"]) == 12
    assert report["model"]["layers"], report["model"]["heads"] == (2, 4)
    assert report["rollout"]["evicting_chunks"] == [2, 3]
    assert report["made_with"]["threads"] == 1


def test_bytes_and_frames(report):
    frame = 2 * 24 * 24 * 4  # K and V of 24 tokens of 24 channels in float32
    assert report["bytes"]["dense"] == 2 * 4 * 6 * frame
    # Past frames of the classes: 4 heads keep 1, 3 keep 2, 1 keeps 3; each has room for a chunk of 3 besides.
    assert report["bytes"]["held"] == report["bytes"]["planned"] == (4 * 1 + 3 * 2 + 1 * 3 + 8 * 3) * frame
    assert report["bytes"]["ratio"] == report["bytes"]["held"] / report["bytes"]["dense"]
    kept = {name: (entry["heads"], entry["kept"]) for name, entry in report["policy"]["classes"].items()}
    assert kept == {"near": (4, [0, 1, 1, 1]), "rhythm": (3, [0, 1, 2, 2]), "far": (1, [0, 3, 3, 3])}
    assert report["bytes"]["by_chunk"]["history"]["far"] == [0, 3 * frame, 3 * frame, 3 * frame]
    assert report["bytes"]["by_chunk"]["current"] == [8 * 3 * frame] * 4
    assert report["sides"]["native"]["held_bytes"] == report["sides"]["dense"]["held_bytes"] == report["bytes"]["dense"]


def test_sides(report):
    assert list(report["sides"]) == ["dense", "dense_compiled", "native", "policy", "reference"]
    for side in report["sides"].values():
        assert len(side["passes"]) == 4 * 2
        assert side["chunk_seconds"] > 0
        compiling = sum(one["seconds"] for one in side["passes"] if one["graphs"])
        assert side["compiling_passes_seconds"] == pytest.approx(compiling)
    graphs = {name: side["graphs"] for name, side in report["sides"].items()}
    assert graphs["dense"] == graphs["reference"] == graphs["policy"] == 0
    assert graphs["dense_compiled"] == graphs["native"] > 0
    assert report["structure"]["launches_per_layer_and_pass"] == 1
    assert 0 < report["errors"]["policy_against_reference"] < 1e-5
    assert report["errors"]["one_frame_missing"] > 1e-3


def test_files_and_output(finished, report):
    folder, _, result = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(["report.json", *report["pictures"]])
    assert json.loads(result.stdout) == report
    from matplotlib.image import imread

    for name in report["pictures"]:
        height, width = imread(folder / name).shape[:2]
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size < 120_000
        assert width > 1000
        assert height > 300


def test_the_table_fits_a_terminal(report):
    from rich.console import Console

    shown = io.StringIO()
    Console(width=80, file=shown).print(table(report))
    shown = shown.getvalue()
    for part in ("time of a chunk, s", "past frames, rhythm", "0.77", "ok ", "says"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bytes_as_planned", {"predicted_bytes": 1}),
        ("no_graph_breaks", {"graph_breaks": 1}),
        ("control", {"control_error": 1e-4}),
    ],
)
def test_checks_see_what_is_wrong(finished, monkeypatch, name, change):
    measured = finished[1]
    assert {check.name: check.holds for check in run_checks(measured)}[name]
    for attribute, value in change.items():
        monkeypatch.setattr(measured, attribute, value)
    assert not {check.name: check.holds for check in run_checks(measured)}[name]


def test_stores_are_compared_with_what_they_decided(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "headforce: 0\n"
        "classes: {store: 'window(1) as recent | episodic(2, source=evicted(recent), write=novel(0.9))'}\n"
        "heads: {0: {store: [1, 2]}, 1: {store: [3]}}\n"
    )
    result = run(tmp_path / "out", "--policy", policy, "--json")
    report = json.loads(result.stdout)
    assert {name: max(entry["kept"]) for name, entry in report["policy"]["classes"].items()} == {
        "native": 3,
        "store": 3,
    }


def test_wrong_attention_fails_with_a_sentence(tmp_path):
    target("one percent off")(lambda *args: sdpa(*args) * 1.01)
    result = run(tmp_path, "--target", "one percent off", code=1)
    report = json.loads((tmp_path / "report.json").read_text())
    failed = [check["name"] for check in report["checks"] if not check["holds"]]
    assert failed == ["identity", "policy_error"]
    assert "FAILED" in result.stdout
    assert "a check of the demo does not hold. Under native() the compiled model differs by" in result.stderr


def test_an_interrupted_run_leaves_the_old_results(finished, tmp_path, monkeypatch):
    (tmp_path / "report.json").write_text("old")

    def interrupt(measured, folder):
        (folder.staging / "reads.png").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "measure", lambda *_: finished[1])
    monkeypatch.setattr(demo, "build_report", lambda *_: {})
    monkeypatch.setattr(demo, "draw_pictures", interrupt)
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_demo(Settings(preset="tiny", out=tmp_path, threads=1))
    assert torch.get_num_threads() == threads
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--policy", "absent.yaml"], "HF-POLICY-FILE", "absent.yaml"),
        (["--policy", "examples/policies/demo.yaml"], "HF-POLICY-", ""),
        (["--model", "causal-wam"], "HF-DEMO", "did you mean 'causal-wan'?"),
        (["--chunks", "3"], "HF-DEMO", "at least 4"),
        (["--target", "spda"], "HF-TARGET", "did you mean 'sdpa'?"),
    ],
)
def test_refusals(tmp_path, monkeypatch, options, code, part):
    monkeypatch.chdir(Path(__file__).parents[1])
    result = run(tmp_path, *options, code=2)
    assert f"headforce: [{code}" in result.stderr
    assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "[HF-DEMO] at --out" in run(tmp_path / "file" / "out", code=2).stderr


def test_without_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("headforce.demo.example.__file__", str(tmp_path / "site-packages/headforce/demo/example.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HeadforceError, match=r"HF-DEMO.*git clone"):
        load_example("causal-wan")
