"""benchmarks/gpu.py: its steps, and how they end."""

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
