"""How time and bytes grow, and whether they were predicted: frames, heads, tokens, layers, and the cost of planning.

    PYTHONPATH=. python benchmarks/scaling.py [--machine FILE.json] [--full] [--out out/scaling.json]

The example model runs as it is (eager) and compiled by headforce, side by side, pass by pass: two passes a chunk of
three frames, float32 on the CPU, one policy. Each point varies one size. `--machine` is a file of
`headforce calibrate`; without it this machine is measured first, in half a minute. Of every point the time of a chunk
is compared with what `headforce plan --predict` says, while the window fills and once it is full; bytes are compared
exactly. The frames go to 3000 at a small size: once the window is full, time must not grow.

Writes a JSON file and a plot beside it and prints a table. Exits with 1 if bytes differ; times fail nothing.
`--processor-time` counts seconds of the processor with one thread: for a machine that others use.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import aligned, facts, write
from scaling_points import CHUNK, HEAD_DIM, Size, point, ratios, run

from headforce.cost import Machine
from headforce.cost.calibrate import Grid, calibrate
from headforce.cost.samples import Samples
from headforce.cost.stopwatch import Stopwatch, lower_quartile

BASE = Size()
WITHIN = 0.15
"""The deviation of a prediction that is aimed at."""

POINTS = {
    "heads": [replace(BASE, heads=n) for n in (2, 4, 8)],
    "tokens": [replace(BASE, rows=r, columns=c) for r, c in ((2, 4), (16, 20))],
    "layers": [replace(BASE, layers=n) for n in (1, 4, 8)],
}
LARGE = Size(layers=4, heads=12, rows=12, columns=20, window=21, frames=33, ffn=6)
FULL = {
    "heads": [replace(LARGE, heads=n) for n in (4, 8, 12)],
    "tokens": [replace(LARGE, rows=r, columns=c) for r, c in ((6, 10), (24, 20))],
    "layers": [replace(LARGE, layers=n) for n in (2, 8)],
}
LONG = Size(layers=1, heads=2, rows=2, columns=3, frames=3000)
PLANNED = ((2, 4), (8, 12), (30, 12), (40, 40))
RULES = 4


def frames(now: Any, inner: str, length: int) -> dict[str, Any]:
    """The time of a chunk along a long video, and the bytes held; the slope is that of a straight line."""
    size = replace(LONG, frames=length)
    found: dict[str, Any] = {"frames": length}
    sides, held = run(size, inner, now, 1)
    for name, side in sides.items():
        seconds = np.array([sum(passes) for passes in side.videos[0]])
        at = CHUNK * np.arange(len(seconds))
        full = slice(2 * size.window // CHUNK + 8, None)  # what compiles comes before
        tenths = [lower_quartile(part) for part in map(list, np.array_split(seconds[full], 10))]
        slope = float(np.polyfit(np.linspace(0, 1, 10), tenths, 1)[0]) / float(np.median(tenths))
        thinned = {"frame": at[::10].tolist(), "seconds": seconds[::10].tolist()}
        found[name] = {"tenths": tenths, "growth": slope, "held": held[name], **thinned}
    return found


def planning(machine: Machine, watch: Stopwatch) -> list[dict[str, Any]]:
    """Planning a chunk and making its tables, against heads x layers."""
    samples = Samples(torch.device("cpu"), torch.float32, machine.target)
    host = machine.host
    return [
        {
            "layers": layers,
            "heads": heads,
            "measured": watch(samples.chunk(RULES, layers, heads)),
            "predicted": host.rule * RULES + host.cell * layers * heads,
        }
        for layers, heads in PLANNED
    ]


def table(report: dict[str, Any]) -> str:
    """All points, as Markdown."""
    rows = [["point", "ms, dense", "predicted", "ms, headforce", "predicted", "MiB, dense", "MiB, headforce"]]
    for found in report["points"]:
        size = found["size"]
        name = f"{size['layers']} x {size['heads']} x {size['tokens']}"
        for state in ("filling", "full"):
            cells = []
            for side in ("dense", "headforce"):
                measured, expected = (found[kind][side][state] for kind in ("measured", "predicted"))
                cells += [f"{1e3 * measured:.1f}", f"{1e3 * expected:.1f} ({expected / measured:.2f})"]
            held = [f"{found['held'][side] / 2**20:.2f}" for side in ("dense", "headforce")]
            rows.append([f"{found['axis']}: {name}, {state}", *cells, *held])
    lines = [aligned(rows), "", f"within {WITHIN:.0%}: {report['within']:.0%} of {report['compared']} predictions", ""]
    for side in ("dense", "headforce"):
        one = report["frames"][side]
        lines.append(
            f"{report['frames']['frames']} frames, {side}: {1e3 * float(np.median(one['tenths'])):.2f} ms a chunk, "
            f"growth {one['growth']:+.1%} from the full window to the end, {one['held'] / 2**20:.3f} MiB held"
        )
    lines.append("")
    rows = [["planning: layers x heads", "ms", "predicted"]]
    rows += [
        [f"{p['layers']} x {p['heads']}", f"{1e3 * p['measured']:.2f}", f"{1e3 * p['predicted']:.2f}"]
        for p in report["planning"]
    ]
    return "\n".join([*lines, aligned(rows)])


def draw(report: dict[str, Any], path: Path) -> None:
    """Time along the frames, and predicted against measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for side, colour in (("dense", "#bbbbbb"), ("headforce", "#4477aa")):
        one = report["frames"][side]
        left.plot(one["frame"], [1e3 * s for s in one["seconds"]], ".", color=colour, markersize=3, label=side)
        pairs = [
            (found["measured"][side][state], found["predicted"][side][state])
            for found in report["points"]
            for state in ("filling", "full")
        ]
        right.loglog(*([1e3 * v for v in values] for values in zip(*pairs, strict=True)), "o", color=colour, label=side)
    typical = float(np.median(report["frames"]["headforce"]["seconds"]))
    left.set(xlabel="frame", ylabel="time of a chunk, ms", ylim=(0, 3e3 * typical))
    ends = np.array(right.get_xlim())
    right.plot(ends, ends, color="#333333", linewidth=1)
    right.fill_between(ends, (1 - WITHIN) * ends, (1 + WITHIN) * ends, color="#ccbb44", alpha=0.3, linewidth=0)
    right.set(xlabel="measured, ms a chunk", ylabel="predicted, ms", xlim=tuple(ends))
    left.legend(frameon=False)
    figure.savefig(path, dpi=140, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", type=Path, help="a file of `headforce calibrate`, for float32 on this CPU")
    parser.add_argument("--full", action="store_true", help="larger sizes, half an hour")
    parser.add_argument("--inner", default="eager", help="the inner compiler; a machine file has to know it")
    parser.add_argument("--frames", type=int, default=LONG.frames)
    parser.add_argument("--videos", type=int, default=4, help="of every point, the first of which compiles")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/scaling.json"))
    given = parser.parse_args(arguments)
    before = torch.get_num_threads()
    torch.set_num_threads(1 if given.processor_time else given.threads)
    try:
        return _measured(given)
    finally:
        torch.set_num_threads(before)


def _measured(given: argparse.Namespace) -> int:
    device, now = torch.device("cpu"), time.process_time if given.processor_time else time.perf_counter
    watch = Stopwatch(device, now=now)
    if given.machine is None:
        grid = Grid.of("cpu", small=not given.full)
        options = {"head_dims": (HEAD_DIM,), "inner": given.inner, "grid": grid, "watch": watch}
        machine = calibrate(device, torch.float32, **options)
    else:
        machine = Machine.load(given.machine)
    points = [
        point(axis, size, machine, given.inner, now, given.videos)
        for axis, sizes in (FULL if given.full else POINTS).items()
        for size in sizes
    ]
    close = [abs(ratio - 1) <= WITHIN for found in points for ratio in ratios(found).values()]
    report = {
        "machine": facts(device),
        "threads": torch.get_num_threads(),
        "processor_time": given.processor_time,
        "inner": given.inner,
        "points": points,
        "compared": len(close),
        "within": sum(close) / len(close),
        "frames": frames(now, given.inner, given.frames),
        "planning": planning(machine, watch),
    }
    write(report, given.out)
    draw(report, given.out.with_suffix(".png"))
    print(table(report))
    wrong = [found["size"] for found in points if found["held"] != found["counted"]]
    for size in wrong:
        print(f"bytes held are not those counted: {size}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
