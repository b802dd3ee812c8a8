"""The command line, in process and as a real one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from headforce._version import __version__
from headforce.cli import main

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "policies" / "static_dynamic.yaml")
TINY_LABELS = str(Path(__file__).parents[1] / "examples" / "labels" / "forcing_kv.tiny.json")


def run(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + result.stderr
    return result


def plan_json(*args):
    return json.loads(run("plan", EXAMPLE, "--json", *args).stdout)


def test_version_and_help():
    assert __version__ in run("--version").output
    assert "plan" in run("-h").output
    assert "--schedule" in run("plan", "--help").output


def test_json():
    data = plan_json("--layers", 4, "--heads", 6, "--schedule", "1,3x2,2", "--head-dim", 8, "--tokens-per-frame", 5)
    sizes = ["history_bytes", "steady_bytes", "current_bytes", "pool_bytes", "dense_bytes"]
    assert list(data) == ["version", "chunks", "capacity_frames", *sizes]
    assert data["version"] == 1
    assert [(c["start"], c["frames"]) for c in data["chunks"]] == [(0, 1), (1, 3), (4, 3), (7, 2)]
    assert all(list(c["read"]) == list("0123") for c in data["chunks"])
    assert all(list(c["read"]["0"]) == list("012345") for c in data["chunks"])
    assert data["chunks"][3]["read"]["0"]["1"] == [
        {
            "q": [7, 8],
            "items": [{"kind": "sink", "frames": [0], "pos": [0]}, {"kind": "window", "frames": [6], "pos": [6]}],
        }
    ]
    assert data["capacity_frames"]["2"]["1"] == {"peak": 1, "steady": 0}
    assert data["current_bytes"] == 3 * 24 * 2 * 5 * 8 * 2


def test_options_of_size():
    small = plan_json("--layers", 3, "--heads", 4, "--schedule", "3x4")
    for option, factor in (
        ("--batch=3", 3),
        ("--dtype=float32", 2),
        ("--head-dim=64", 0.5),
        ("--tokens-per-frame=3120", 2),
    ):
        other = plan_json("--layers", 3, "--heads", 4, "--schedule", "3x4", option)
        for key in ("history_bytes", "steady_bytes", "current_bytes", "pool_bytes", "dense_bytes"):
            assert other[key] == factor * small[key]


def test_native():
    base = ("--layers", 3, "--heads", 4, "--schedule", "3x14", "--head-dim", 1, "--tokens-per-frame", 1)
    assert plan_json(*base)["dense_bytes"] == 21 * 12 * 4
    assert plan_json(*base, "--native", "sink(3) | span(9)")["dense_bytes"] == 12 * 12 * 4


def test_drawing(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shown = run("plan", EXAMPLE, "--layers", 3, "--heads", 4, "--png", tmp_path / "plan.picture").output
    for part in ("static (", "dynamic (", "local (1 head)", "sink(1)@collapse(21) | window(1)", "# current chunk"):
        assert part in shown
    assert (tmp_path / "plan.picture").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("columns", ["20", "60", "200"])
def test_drawing_fits_the_terminal(columns):
    result = CliRunner(env={"COLUMNS": columns}).invoke(main, ["plan", EXAMPLE, "--layers", "3", "--schedule", "3x40"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= int(columns)


def test_a_head_may_read_nothing_at_all(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("headforce: 0\nclasses: {a: drop()}\ndefault: a\n")
    shown = run("plan", path, "--layers", 1, "--heads", 1, "--schedule", "1").output
    assert "a (1 head)" in shown


@pytest.mark.parametrize("name", ["[/bold]", "[bold]near[/bold]", ":smile:", "far\\\\"])
def test_a_class_is_shown_as_it_is_called(tmp_path, name):
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps({"headforce": 1, "classes": {name: "window(1)"}, "default": name}))
    shown = run("plan", path, "--layers", 1, "--heads", 1, "--schedule", "3x9").output
    assert shown.count(name) == 2
    assert f"{name} (1 head)" in shown


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["absent.yaml"], "HF-POLICY-FILE"),
        ([EXAMPLE, "--layers", "2"], f"HF-POLICY-SHAPE] at {EXAMPLE}, heads.2"),
        (["forcing_kv", "--labels", TINY_LABELS], "HF-POLICY-SHAPE] at forcing_kv, made_for"),
        ([EXAMPLE, "--heads", "3"], "HF-POLICY-SHAPE"),
        ([EXAMPLE, "--schedule", "3x0"], "HF-SCHEDULE"),
        ([EXAMPLE, "--schedule", "3x90"], "HF-HORIZON"),
        ([EXAMPLE, "--native", "spam(21)"], "HF-OP-UNKNOWN"),
        ([EXAMPLE, "--native", "span(21"], "HF-RULE-SYNTAX"),
        ([EXAMPLE, "--native", "native()"], "HF-OP-ARG"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_refusals(args, code, form):
    result = run("plan", *args, *form, code=2)
    assert f"headforce: [{code}" in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "args", [["--layers", "0"], ["--heads", "-1"], ["--dtype", "int7"], ["--batch", "x"], ["--unknown"]]
)
def test_wrong_options(args):
    run("plan", EXAMPLE, *args, code=2)


def test_a_picture_that_cannot_be_written(tmp_path):
    result = run("plan", EXAMPLE, "--layers", 3, "--png", tmp_path / "no" / "such.png", code=1)
    assert "such.png" in result.stderr


def test_as_a_real_command():
    done = subprocess.run(
        [sys.executable, "-m", "headforce", "plan", EXAMPLE, "--layers", "3", "--heads", "4", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert len(json.loads(done.stdout)["chunks"]) == 14
    assert done.stderr == ""
