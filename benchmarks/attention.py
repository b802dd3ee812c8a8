"""Attention of one layer, all heads: headforce's targets against what one would use instead, side by side on one GPU.

    PYTHONPATH=. python benchmarks/attention.py [--quick] [--only TEXT ...] [--out FILE.json]
    PYTHONPATH=. python benchmarks/attention.py --dry-run    # without a GPU: tiny shapes, every check, no times

Shapes are those of Wan 1.3B and 14B at 480p and 1080p: a chunk of 3 frames over at most 21, head dim 128, bfloat16,
random data. `plans.py` says what heads read. Variants of every case:

    cudnn, flash   dense SDPA over all 21 frames with one backend; cudnn is the yardstick
    grouped        for each class of heads: concatenate what it keeps, SDPA with the faster backend, scatter
    flex           compiled flex_attention over the dense cache, with a block mask for every head
    varlen         pack what is kept, each head a sequence of its own, and varlen_attn once
    triton, ...    targets of headforce, over pages

Times are medians on the device. Before each run the device spins for twice as long as the host needs to queue the run,
and writes 2 GiB, which flushes the L2 cache: a variant pays for Python where it waits for the device.
Writing the chunk into its cache is nobody's part, nor is making tables, masks or index tensors. Copies that have to be
made for every pass are: `copy` is that share of the time.

FLOPs are those of the rows that are kept, 4 * D for each pair of a query and a key. Columns of the table:

    frames         frames that a query reads, the chunk included, on average over heads
    of cuDNN       TFLOP/s as a share of the yardstick's in the same case: 1 means that all of the saving arrives
    over grouped   how many times faster than grouped
    map cost       time over that of the same plan without position maps
    spread         by how much the same target, or the yardstick, differs when it is measured again after all others
    error          the largest relative error of an output row, against float32 attention computed from the oracle

A variant that is wrong gets no time. What cannot be measured is listed with its reason. Exits with 1 if an output is
wrong or a target fails, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plans
import torch
from clock import Clock
from peers import Variant, Work, first_line, variants
from plans import CHUNK, DENSE, NOW, SHAPES, TINY, Case, Layer, Plan, Shape, dense_pairs, largest_error, name_of
from report import aligned, facts, ratio, remark, write
from torch import Tensor

from headforce import HeadforceError

TARGETS = ("triton", "hopper", "sdpa")
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}
"""Largest relative error of a row of the output. Queries are so peaked that a single key too many shows above it."""

QUICK = ("1.3B-480p ", "1.3B-1080p 4x21+8x6")
"""Cases of `--quick`: every plan at the smallest shape, and one case that fills the GPU many times over."""


@dataclass
class Result:
    """What came of one variant of a case. Times are milliseconds; None where there is nothing to say.

    `state`: ok, wrong, refused (it does not exist, or says that it cannot) or failed (a target broke).
    """

    state: str = "ok"
    reason: str | None = None
    note: str = ""
    ms: float | None = None
    copy_ms: float | None = None
    again_ms: float | None = None
    spread: float | None = None
    error: float | None = None
    tflops: float | None = None
    of_cudnn: float | None = None
    over_grouped: float | None = None
    map_cost: float | None = None


def poison(like: Tensor) -> None:
    """Leaves NaN in memory that the next tensor of this size is likely to get: rows nobody writes then show."""
    torch.full_like(like, torch.nan)


def measure(case: Case, variant: Variant, clock: Clock) -> tuple[Result, Work | None]:
    """Builds, checks and times one variant; never raises for what the variant does."""
    work = None
    try:
        if clock.on:
            torch.cuda.empty_cache()
        expected = case.layer.dense if variant.dense else case.expected
        work = variant.build(case, clock)
        poison(case.layer.query)
        result = judged(largest_error(work.run(), expected), TOLERANCE[case.layer.dtype])
        if clock.on and result.state == "ok":
            ms, copy_ms = clock(work.run), clock(work.copy) if work.copy else None
            # Once more: a fault that comes and goes may show after so many runs.
            result = judged(largest_error(work.run(), expected), TOLERANCE[case.layer.dtype])
            if result.state == "ok":
                result.ms, result.copy_ms = ms, copy_ms
        result.note = work.note
    except Exception as error:
        known = isinstance(error, HeadforceError) or not variant.ours
        result = Result("refused" if known else "failed", first_line(error))
    return result, work


def judged(error: float, tolerance: float) -> Result:
    """A result with its error: wrong if that is too large, or no number."""
    result = Result(error=error if math.isfinite(error) else None)
    if not error <= tolerance:
        result.state, result.reason = "wrong", f"relative error {error:.2g}, at most {tolerance:g} is allowed"
    return result


def measure_case(case: Case, chosen: list[Variant], clock: Clock) -> dict[str, Result]:
    """Every variant, and then the yardstick and every target a second time."""
    results: dict[str, Result] = {}
    again: list[tuple[Result, Work]] = []
    for variant in chosen:
        result, work = measure(case, variant, clock)
        results[variant.name] = result
        if (variant.ours or variant is chosen[0]) and work is not None and result.ms is not None:
            again.append((result, work))
        del work  # the copies of a peer are as large as the cache
    for result, work in again:
        try:
            result.again_ms = clock(work.run)
            result.spread = abs(result.again_ms / result.ms - 1)
        except Exception as error:
            result.note = f"not measured again: {first_line(error)}"
    return results


def compare(
    case: Case, pairs: int, results: dict[str, Result], chosen: list[Variant], earlier: list[dict[str, Any]]
) -> None:
    """Fills in what follows from times: rates and ratios."""
    flops = {True: 4 * case.shape.dim * dense_pairs(case.shape), False: 4 * case.shape.dim * pairs}
    plain = next((c["variants"] for c in earlier if c["case"] == f"{case.shape.name} {case.plan.plain}"), {})
    for variant in chosen:
        result = results[variant.name]
        if result.ms is not None:
            result.tflops = flops[variant.dense] / result.ms / 1e9
    yardstick, grouped = results[chosen[0].name], results["grouped"]
    for name, result in results.items():
        result.of_cudnn = ratio(result.tflops, yardstick.tflops)
        result.over_grouped = ratio(grouped.ms, result.ms)
        if case.plan.plain != case.plan.name:
            result.map_cost = ratio(result.ms, plain.get(name, {}).get("ms"))


# --- the report -------------------------------------------------------------------------------------------------


def record(case: Case, pairs: int, results: dict[str, Result]) -> dict[str, Any]:
    """One entry of `cases` in the JSON file. `pairs` are of a query row and a key row, over all heads."""
    shape = case.shape
    query_rows = shape.heads * CHUNK * shape.tokens
    return {
        "case": case.name,
        "shape": asdict(shape),
        "plan": case.plan.name,
        "rules": case.plan.rules,
        "heads": plans.classes(case.plan, shape.heads),
        "pairs": pairs,
        "frames": pairs / query_rows / shape.tokens,
        "kept": pairs / dense_pairs(shape),
        "tflop": 4 * shape.dim * pairs / 1e12,
        "variants": {name: asdict(result) for name, result in results.items()},
    }


COLUMNS = {
    "ms": ("ms", "{:.3f}"),
    "copy": ("copy_ms", "{:.3f}"),
    "TFLOP/s": ("tflops", "{:.0f}"),
    "of cuDNN": ("of_cudnn", "{:.2f}"),
    "over grouped": ("over_grouped", "{:.2f}"),
    "map cost": ("map_cost", "{:.2f}"),
    "spread": ("spread", "{:.1%}"),
    "error": ("error", "{:.1e}"),
}


def table(report: dict[str, Any]) -> str:
    """The report as one Markdown table."""
    rows = [["case", "frames", "variant", *COLUMNS, ""]]
    for case in report["cases"]:
        for name, result in case["variants"].items():
            values = [(result[key], form) for key, form in COLUMNS.values()]
            cells = ["" if value is None else form.format(value) for value, form in values]
            rows.append([case["case"], f"{case['frames']:.2f}", name, *cells, remark(result)])
    return aligned(rows)


def holds(report: dict[str, Any]) -> bool:
    """Nothing is wrong, and no target failed. To refuse is allowed."""
    states = [result["state"] for case in report["cases"] for result in case["variants"].values()]
    return not {"wrong", "failed"} & set(states)


def cases_of(arguments: argparse.Namespace) -> list[tuple[Shape, Plan]]:
    shapes = (TINY,) if arguments.dry_run else SHAPES
    found = [(shape, plan) for shape in shapes for plan in plans.PLANS]
    if arguments.quick and not arguments.dry_run:
        whole, single = QUICK
        found = [pair for pair in found if name_of(*pair).startswith(whole) or name_of(*pair) == single]
    if arguments.only:
        found = [pair for pair in found if any(text in name_of(*pair) for text in arguments.only)]
    return found


def new_report(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What the JSON file holds, without cases. `ok` is false until all cases are there."""
    dtype = torch.float32 if arguments.dry_run else torch.bfloat16
    settings = {
        "dry_run": arguments.dry_run,
        "quick": arguments.quick,
        "only": arguments.only,
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": TOLERANCE[dtype],
        "chunk": CHUNK,
        "dense": DENSE,
        "start": NOW.start,
    }
    return {"version": 1, "machine": facts(device), "settings": settings, "ok": False, "cases": []}


def measure_all(report: dict[str, Any], arguments: argparse.Namespace, device: torch.device) -> None:
    """Fills in the cases, and writes the report after each of them."""
    dtype = getattr(torch, report["settings"]["dtype"])
    targets = arguments.targets or (("reference",) if arguments.dry_run else ()) + TARGETS
    chosen = variants(targets, arguments.dry_run, arguments.few_peers)
    clock = Clock(device, budget=50 if arguments.quick else 150)
    for shape, of_shape in itertools.groupby(cases_of(arguments), key=lambda pair: pair[0]):
        if clock.on:
            torch.compiler.reset()  # shapes are not to add up to the limit of recompilations
        measure_shape(report, Layer(shape, dtype, device), [plan for _, plan in of_shape], chosen, clock, arguments.out)
    report["ok"] = holds(report)
    write(report, arguments.out)


def measure_shape(
    report: dict[str, Any], layer: Layer, of_shape: list[Plan], chosen: list[Variant], clock: Clock, out: Path
) -> None:
    for plan in of_shape:
        print(name_of(layer.shape, plan), file=sys.stderr, flush=True)
        case = Case(layer, plan)
        pairs = case.pairs  # now: a kernel that breaks leaves a device that no longer answers
        results = measure_case(case, chosen, clock)
        compare(case, pairs, results, chosen, report["cases"])
        report["cases"].append(record(case, pairs, results))
        write(report, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1.3B at 480p and one case at 1080p, fewer repeats")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: tiny shapes, checks, no times")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases whose name has TEXT in it; repeatable")
    parser.add_argument("--target", action="append", dest="targets", help="instead of all targets; repeatable")
    parser.add_argument("--few-peers", action="store_true", help="without flex and varlen")
    parser.add_argument("--out", type=Path, default=Path("out/attention.json"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not arguments.dry_run and not torch.cuda.is_available():
        print("no CUDA device: times need one. --dry-run checks everything else without.", file=sys.stderr)
        return 2
    if not cases_of(arguments):
        parser.error(f"no case has any of these in its name: {', '.join(arguments.only)}")
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    if arguments.dry_run:
        torch.set_num_threads(1)  # tensors are so small that threads would wait for each other
    report = new_report(arguments, device)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            measure_all(report, arguments, device)
    finally:
        print(table(report))
    print(f"\n{report['machine']['device']}; all of it in {arguments.out}", file=sys.stderr)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
