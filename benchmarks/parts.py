"""Where the time of a chunk goes: attention, linear layers, the rest, and the host, by the profiler of torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import torch

ATTENTION = re.compile(r"attention|attn|flash|fmha|sdpa|combine_parts", re.IGNORECASE)
LINEAR = re.compile(r"gemm|nvjet|cutlass|xmma|cublas|addmm|\bmm\b|bmm|linear|splitk", re.IGNORECASE)
INDUCTOR = re.compile(r"triton_(?P<kind>[a-z]+)_fused")
"""Kernels that Inductor wrote. Their names go on with those of all operators around them, attention among them."""

Work = tuple[str, float, float]
"""A kernel, or an operator of a CPU: its name, when it began and when it ended, in microseconds."""


def part_of(name: str) -> str:
    """What a kernel or an operator computes, by its name. Attention first: its kernels are called cutlass too.

    Of Inductor's own kernels only templates are more than the rest: products of matrices, and flex_attention.
    """
    inductors = INDUCTOR.match(name)
    if inductors and inductors["kind"] == "tem":
        return "attention" if "_flex_" in name else "linear"
    if inductors:
        return "rest"
    if ATTENTION.search(name):
        return "attention"
    return "linear" if LINEAR.search(name) else "rest"


def times_by_part(work: Iterable[Work]) -> dict[str, float]:
    """Milliseconds of each part."""
    times = dict.fromkeys(("attention", "linear", "rest"), 0.0)
    for name, begin, end in work:
        times[part_of(name)] += (end - begin) / 1e3
    return times


def by_kernel(work: Iterable[Work], most: int = 24) -> list[tuple[str, int, float]]:
    """The kernels that take longest: their names, how often they ran, and milliseconds in all."""
    found: dict[str, tuple[int, float]] = {}
    for name, begin, end in work:
        count, spent = found.get(name, (0, 0.0))
        found[name] = count + 1, spent + (end - begin) / 1e3
    rows = [(name, count, spent) for name, (count, spent) in found.items()]
    return sorted(rows, key=lambda row: -row[2])[:most]


def busy(work: Iterable[Work]) -> float:
    """Milliseconds in which anything ran."""
    total, until = 0.0, float("-inf")
    for _, begin, end in sorted(work, key=lambda one: one[1]):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total / 1e3


def parts(run: Callable[[], object], milliseconds: float) -> tuple[dict[str, float], list[tuple[str, int, float]]]:
    """Milliseconds of each part of `run` on the GPU, and `by_kernel`. `host` is what is left of the `milliseconds` that
    it takes without a profiler, in which the device waited."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    work = on_device(profiler.events())
    return times_by_part(work) | {"host": max(0.0, milliseconds - busy(work))}, by_kernel(work)


def on_device(events: Sequence[object]) -> list[Work]:
    """The kernels and copies among the profiler's events."""
    found = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]  # type: ignore[attr-defined]
    return [(e.name, e.time_range.start, e.time_range.end) for e in found]  # type: ignore[attr-defined]
