"""Everything that needs a GPU, step by step: the tests, then the benchmarks in a short form. `make gpu` runs it.

    python benchmarks/gpu.py [--step NAME ...] [--skip NAME ...] [--seconds 570] [--full] [--out FOLDER]

It installs nothing and takes the machine's own Python. All steps together take less than a quarter of an hour; what
does not fit into `--seconds` is left out. Every step is a process of its own with a time limit: a kernel that breaks
the device or never ends costs its own step and no other.

FOLDER/summary.json says how each step ended, and what it printed last; FOLDER/results.tar.gz has everything that steps
printed, and the reports of benchmarks. Both are written anew, whole or not at all, as steps end: a run that is killed
loses the step that runs, and one that is asked to end not even that. Exits with 1 if a step failed or ran out of time,
with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "--durations=5")
WORKERS = 8
"""Of tests, where pytest-xdist is there: most of their time is compiling."""
LINES = 25
"""That a step printed last, in the summary and on the screen."""


@dataclass(frozen=True)
class Step:
    """Arguments of Python, and the seconds that they may take. `report` is what a benchmark writes."""

    name: str
    seconds: int
    arguments: tuple[str, ...]
    report: str = ""
    many: bool = False
    """Tests that several workers may run at once."""


KERNELS = "tests/kernels/test_gpu.py"
MODELS = ("tests/kvpass/test_gpu.py", "tests/kvpass/test_gpu_graphs.py")
ATTENTION, ROLLOUT = "benchmarks/attention.py", "benchmarks/rollout.py"
OURS = "headforce forcing_kv triton"
GRAPHS = [f"headforce {preset} hopper graphs" for preset in ("forcing_kv", "dummy_forcing", "pyramid_forcing")]


def only(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--only", name))


CASES = ("--quick", "--few-peers", *only("forcing_kv", "4x21+8x6"))
"""Of the short form: what the rollout reads, and a case that fills the GPU many times over."""
SIZE = ("--size", "480p", "--frames", "30")


def steps_of(full: bool) -> list[Step]:
    """What is known to be right comes first, and what may hang comes late."""
    return _full() if full else _short()


def _short() -> list[Step]:
    """In all less than a quarter of an hour. Nothing that a CPU could do as well."""
    return [
        *_tests(20, 40, 60, 120),
        Step("attention", 60, (ATTENTION, *CASES, "--target", "triton", "--target", "sdpa"), "attention.json"),
        Step("rollout", 240, (ROLLOUT, "--quick", *only("a1", "grouped", OURS, *GRAPHS)), "rollout.json"),
        # The whole model is one graph here, and most of the time is that of tracing it.
        Step("captured", 200, (ROLLOUT, *SIZE, *only("grouped forcing_kv", GRAPHS[0])), "captured.json"),
        _hopper(80),
        Step("attention_hopper", 40, (ATTENTION, *CASES, "--target", "hopper"), "hopper.json"),
    ]


def _full() -> list[Step]:
    """An hour or two."""
    captured = (ROLLOUT, *SIZE, *only("a1", OURS, f"{OURS} graphs", GRAPHS[0]))
    return [
        *_tests(60, 90, 240, 300),
        _hopper(180),
        Step("planning", 60, ("benchmarks/planning.py",)),
        Step("attention", 2400, (ATTENTION, "--target", "triton", "--target", "sdpa"), "attention.json"),
        Step("attention_hopper", 1800, (ATTENTION, "--target", "hopper", "--few-peers"), "hopper.json"),
        Step("rollout", 6000, (ROLLOUT,), "rollout.json"),
        Step("captured", 600, captured, "captured.json"),
    ]


def _tests(machine: int, shells: int, kernels: int, models: int) -> list[Step]:
    return [
        Step("machine", machine, ("benchmarks/machine.py",)),
        # It asks the driver what memory is left.
        Step("shells", shells, (*PYTEST, "tests/kvpass/test_shell.py")),
        Step("kernels", kernels, (*PYTEST, KERNELS, "-k", "not hopper"), many=True),
        Step("models", models, (*PYTEST, *MODELS), many=True),
    ]


def _hopper(seconds: int) -> Step:
    return Step("hopper", seconds, (*PYTEST, KERNELS, "-k", "hopper"), many=True)


def run(step: Step, seconds: float, out: Path) -> str:
    """Runs a step; how it ended."""
    arguments = [*step.arguments]
    if step.many and importlib.util.find_spec("xdist"):
        arguments += ["-n", str(WORKERS), "--dist", "worksteal"]
    if step.report:
        arguments += ["--out", str(out / step.report)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}
    with (out / f"{step.name}.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the workers of a step end with it
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"stopped after {seconds:.0f} s"
        except BaseException:  # who stops this one does not know of the step's own session
            _end(process)
            raise
    return "ok" if status == 0 else f"failed ({status})"


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Results:
    """What a run leaves in `folder`: the summary, and one archive of what steps left in `work`."""

    def __init__(self, folder: Path, work: Path, names: Sequence[str]) -> None:
        self.folder, self.work = folder, work
        self.steps: dict[str, dict[str, object]] = {name: {"how": "not begun"} for name in names}
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str) -> None:
        self.steps[name] = {"how": "running"}
        self._replace("summary.json", self._summary)

    def add(self, name: str, how: str, seconds: float, lines: Sequence[str]) -> None:
        self.steps[name] = {"how": how, "seconds": round(seconds, 1), "last": list(lines)}
        self._replace("results.tar.gz", self._archive)
        self._replace("summary.json", self._summary)

    @property
    def ok(self) -> bool:
        return all(step["how"] == "ok" for step in self.steps.values())

    def _summary(self, path: Path) -> None:
        path.write_text(json.dumps({"ok": self.ok, "steps": self.steps}, indent=1) + "\n")

    def _archive(self, path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for file in sorted(self.work.iterdir()):
                archive.add(file, f"results/{file.name}")

    def _replace(self, name: str, write: Callable[[Path], None]) -> None:
        """Whole or not at all."""
        draft = self.folder / f"{name}.part"
        write(draft)
        draft.replace(self.folder / name)


def run_all(steps: Sequence[Step], seconds: float, out: Path) -> bool:
    """Runs steps until the seconds are over; whether all of them ended well."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = Results(out, work, [step.name for step in steps])
        for step in steps:
            begin = time.monotonic()
            left = min(step.seconds, end - begin)
            results.begin(step.name)
            how = "cut off"
            try:
                how = run(step, left, work) if left > 0 else "no time was left"
            finally:
                log = work / f"{step.name}.txt"
                lines = log.read_text(errors="replace").splitlines()[-LINES:] if log.exists() else []
                results.add(step.name, how, time.monotonic() - begin, lines)
            print(f"--- {step.name}: {how}", *lines, sep="\n", flush=True)
    print("\n".join(f"{name:18}{step['seconds']:7.0f} s  {step['how']}" for name, step in results.steps.items()))
    return results.ok


def main(argv: Sequence[str] | None = None) -> int:
    names = [step.name for step in steps_of(True)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--skip", action="append", choices=names, metavar="NAME", default=[])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all steps together")
    parser.add_argument("--full", action="store_true", help="benchmarks in their long form: an hour or two")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    import torch  # here: `--help` is for machines that lack it too

    if not torch.cuda.is_available():
        print("no CUDA device: benchmarks have a dry run, `rollout.py --dry-run` and `attention.py --dry-run`")
        return 2
    wanted = set(arguments.step or names) - set(arguments.skip)
    steps = [step for step in steps_of(arguments.full) if step.name in wanted]
    if not steps:
        parser.error("no step is left; planning is one of --full")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step ends too, and what it left is kept
    return 0 if run_all(steps, arguments.seconds, arguments.out.resolve()) else 1


if __name__ == "__main__":
    sys.exit(main())
