"""benchmarks/gpu.py: its steps, how they end, and what a run leaves."""

import json
import signal
import tarfile
import time

import pytest

from .benchmark_scripts import load

gpu = load("gpu")


def test_steps_name_what_is_there():
    for full in (False, True):
        steps = gpu.steps_of(full)
        assert len({step.name for step in steps}) == len(steps)
        files = [word for step in steps for word in step.arguments if word.endswith(".py")]
        assert len(files) >= len(steps)
        assert all((gpu.ROOT / file).is_file() for file in files)
        assert len({step.report for step in steps if step.report}) == sum(bool(step.report) for step in steps)


def test_the_short_form_fits_into_a_quarter_of_an_hour():
    """With half a minute to spare, and without what needs no GPU."""
    steps = gpu.steps_of(False)
    assert sum(step.seconds for step in steps) <= 870
    assert "planning" not in {step.name for step in steps}
    assert {step.name for step in steps} < {step.name for step in gpu.steps_of(True)}


@pytest.mark.parametrize("full", [False, True], ids=["short", "full"])
def test_benchmarks_take_the_arguments_of_their_steps(full):
    rollout = load("rollout")
    found = {}
    for step in gpu.steps_of(full):
        if step.arguments[0] == gpu.ROLLOUT:
            arguments = rollout.parsed([*step.arguments[1:]])
            found[step.name] = [variant.name for variant in rollout.chosen(arguments)]
    ours, graphs = "headforce forcing_kv triton", "headforce forcing_kv hopper graphs"
    if full:
        assert found["captured"] == ["a1", ours, f"{ours} graphs", graphs]
    else:
        assert found["captured"] == ["grouped forcing_kv", graphs]
        presets = ("forcing_kv", "dummy_forcing", "pyramid_forcing")
        peers = ["a1", *(f"grouped {preset}" for preset in presets)]
        assert found["rollout"] == [*peers, ours, *(f"headforce {preset} hopper graphs" for preset in presets)]


def test_every_test_that_needs_a_gpu_is_in_a_step():
    marked = {
        str(path.relative_to(gpu.ROOT))
        for path in (gpu.ROOT / "tests").rglob("test_*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("pytest.mark.gpu", "marks=GPU"))
    }
    steps = {word for step in gpu.steps_of(False) for word in step.arguments}
    assert {name for name in marked if name != "tests/test_gpu_steps.py"} <= steps


@pytest.mark.parametrize(
    ("code", "seconds", "how"),
    [
        ("print('done')", 60, "ok"),
        ("print('done'); raise SystemExit(3)", 60, "failed (3)"),
        # A process that another one has started must not outlive the step either.
        (
            "import subprocess, sys, time; print('done', flush=True)\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
            2,
            "stopped after 2 s",
        ),
    ],
    ids=["ok", "failed", "stopped"],
)
def test_how_a_step_ends(code, seconds, how, tmp_path):
    begin = time.monotonic()
    assert gpu.run(gpu.Step("one", seconds, ("-c", code)), seconds, tmp_path) == how
    assert time.monotonic() - begin < 50
    assert (tmp_path / "one.txt").read_text() == "done\n"


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu")]) == 2
    assert "--dry-run" in capsys.readouterr().out
    assert not (tmp_path / "gpu").exists()


# --- what a run leaves ----------------------------------------------------------------------------------------------

PRINTS = "import pathlib, sys; print(1); pathlib.Path(sys.argv[2]).write_text('{}')"
ASKS = "import os, time; print(3, flush=True); os.kill(os.getppid(), 15); time.sleep(50)"
STEPS = [
    gpu.Step("first", 60, ("-c", PRINTS), "first.json"),
    gpu.Step("second", 60, ("-c", "print(2); raise SystemExit(3)")),
    gpu.Step("third", 60, ("-c", ASKS)),
]


@pytest.fixture
def a_gpu(monkeypatch):
    """With steps that need none."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "steps_of", lambda full: STEPS)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def left(folder):
    """How steps ended, and the files in the archive."""
    summary = json.loads((folder / "summary.json").read_text())
    assert {file.name for file in folder.iterdir()} == {"summary.json", "results.tar.gz"}
    with tarfile.open(folder / "results.tar.gz") as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert summary["ok"] == all(step["how"] == "ok" for step in summary["steps"].values())
    return {name: step["how"] for name, step in summary["steps"].items()}, texts


def test_a_run_leaves_a_summary_and_one_archive(a_gpu, tmp_path, monkeypatch, capsys):
    """Of all that fitted into its time."""
    monkeypatch.setattr(gpu, "steps_of", lambda full: [*STEPS[:2], gpu.Step("third", 0, STEPS[2].arguments)])
    assert gpu.main(["--out", str(tmp_path)]) == 1
    how, texts = left(tmp_path)
    assert how == {"first": "ok", "second": "failed (3)", "third": "no time was left"}
    assert texts == {"results/first.txt": "1\n", "results/first.json": "{}", "results/second.txt": "2\n"}
    assert "--- second: failed (3)\n2\n" in capsys.readouterr().out


def test_a_run_without_time_gives_up(a_gpu, tmp_path):
    assert gpu.main(["--out", str(tmp_path), "--seconds", "0"]) == 1
    assert left(tmp_path) == (dict.fromkeys(("first", "second", "third"), "no time was left"), {})


def test_a_run_that_is_asked_to_end_keeps_what_there_is(a_gpu, tmp_path):
    with pytest.raises(SystemExit, match="143"):
        gpu.main(["--out", str(tmp_path), "--skip", "second"])
    how, texts = left(tmp_path)
    assert how == {"first": "ok", "third": "cut off"}
    assert texts["results/third.txt"] == "3\n"


def test_what_one_step_left_is_there_while_the_next_runs(a_gpu, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(gpu, "run", lambda step, *_: seen.append((tmp_path / "results.tar.gz").exists()) or "ok")
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert seen == [False, True, True]
