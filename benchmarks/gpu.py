"""Everything that needs a GPU, step by step: the tests, then the benchmarks in their short form. `make gpu` runs it.

    python benchmarks/gpu.py [--step NAME ...] [--skip NAME ...] [--seconds 600] [--full] [--out FOLDER]

It installs nothing and takes the machine's own Python. Every step is a process of its own with a time limit: a kernel
that breaks the device or never ends costs its own step and no other. What a step prints goes to FOLDER/STEP.txt, beside
the reports of benchmarks, which are written as they grow; a table of steps comes last. Exits with 1 if a step failed or
ran out of time, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "--durations=5")
WORKERS = 8
"""Of tests, where pytest-xdist is there: most of their time is compiling."""


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
CAPTURED = ("--only", "headforce forcing_kv triton graphs", "--only", "headforce forcing_kv triton")


def steps_of(full: bool) -> list[Step]:
    """What is known to be right comes first, and what may hang comes late."""
    quick = () if full else ("--quick",)
    long = 10 if full else 1
    attention, rollout = "benchmarks/attention.py", "benchmarks/rollout.py"
    return [
        Step("machine", 60, ("benchmarks/machine.py",)),
        # It asks the driver what memory is left.
        Step("shells", 90, (*PYTEST, "tests/kvpass/test_shell.py")),
        Step("kernels", 240, (*PYTEST, KERNELS, "-k", "not hopper"), many=True),
        Step("models", 300, (*PYTEST, *MODELS), many=True),
        Step("hopper", 180, (*PYTEST, KERNELS, "-k", "hopper"), many=True),
        Step("planning", 60, ("benchmarks/planning.py",)),
        Step("attention", 240 * long, (attention, *quick, "--target", "triton", "--target", "sdpa"), "attention.json"),
        Step("attention_hopper", 180 * long, (attention, *quick, "--target", "hopper", "--few-peers"), "hopper.json"),
        Step("rollout", 600 * long, (rollout, *quick), "rollout.json"),
        Step("captured", 600, (rollout, "--size", "480p", "--frames", "30", *CAPTURED), "captured.json"),
    ]


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
            os.killpg(process.pid, 9)
            process.wait()
            return f"stopped after {seconds:.0f} s"
    return "ok" if status == 0 else f"failed ({status})"


def main(argv: Sequence[str] | None = None) -> int:
    names = [step.name for step in steps_of(False)]
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
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.seconds
    ended: list[tuple[str, str, float]] = []
    for step in steps_of(arguments.full):
        if step.name in arguments.skip or (arguments.step and step.name not in arguments.step):
            continue
        begin = time.monotonic()
        left = min(step.seconds, end - begin)
        how = run(step, left, out) if left > 0 else "no time was left"
        ended.append((step.name, how, time.monotonic() - begin))
        lines = (out / f"{step.name}.txt").read_text(errors="replace").splitlines() if left > 0 else []
        print(f"--- {step.name}: {how}", *lines[-25:], sep="\n", flush=True)
    print("\n".join(f"{name:18}{seconds:7.0f} s  {how}" for name, how, seconds in ended))
    return 0 if all(how == "ok" for _, how, _ in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
