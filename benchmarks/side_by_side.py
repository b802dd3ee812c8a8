"""Variants of `rollout.py` side by side: checked, run in turn chunk by chunk, timed, looked into."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from check import CHUNKS, Checks, error_of
from parts import parts
from peers import first_line
from sides import DENSE, Settings, Side, Variant
from torch import nn
from torch._dynamo.utils import counters
from wan import CHUNK, PIXEL_FRAMES, WINDOW, Video

from headforce import HeadforceError

FULL = WINDOW // CHUNK - 1
"""The first chunk that reads the whole window: from here on a rollout is steady."""

REFUSES = {"HF-CUDAGRAPHS", "HF-KERNEL", "HF-OPTION", "HF-TARGET"}
"""What headforce may say for want of a device or a kernel."""


@dataclass
class Result:
    """What came of a variant. Times are milliseconds, None where there is nothing to say.

    `state`: ok, wrong, refused (it does not exist, or says that it cannot) or failed. `every_ms`: of all measured
    chunks, video by video; `chunk_ms` is the median of those that are steady.
    """

    state: str = "ok"
    reason: str | None = None
    note: str = ""
    error: float | None = None
    allowed: float | None = None
    control: float | None = None
    difference: float | None = None
    batch: int | None = None
    chunk_ms: float | None = None
    every_ms: list[float] = field(default_factory=list)
    processor_ms: float | None = None
    slowest_over_median: float | None = None
    fps: float | None = None
    parts: dict[str, float] | None = None
    kernels: list[tuple[str, int, float]] | None = None
    held_bytes: int | None = None
    peak_bytes: int | None = None
    graphs: int | None = None
    later_graphs: int | None = None
    replays: int | None = None
    first_chunk: list[dict[str, Any]] | None = None
    over: dict[str, float | None] = field(default_factory=dict)


class Spent(NamedTuple):
    """Milliseconds of a chunk, from the first launch until the device is done: by the clock on the wall, of the
    processor over all threads, and of the thread that runs the model."""

    wall: float
    processor: float
    thread: float


def because(error: Exception, variant: Variant) -> Result:
    """The result of a variant that raised."""
    known = isinstance(error, HeadforceError) and error.code in REFUSES
    known |= not variant.ours and isinstance(error, torch.OutOfMemoryError)
    return Result("refused" if known else "failed", first_line(error))


def check(
    variants: Sequence[Variant], checks: Checks, known: Callable[[dict[str, Result]], None] = lambda _: None
) -> dict[str, Result]:
    """Every variant against its reference. `known` is told after each of them what is known by then."""
    results = dict[str, Result]()
    for variant in variants:
        print(f"  checking {variant.name}", file=sys.stderr, flush=True)
        results[variant.name] = _checked(variant, checks)
        known(results)
    return results


def _checked(variant: Variant, checks: Checks) -> Result:
    try:
        found = checks(variant)
    except Exception as error:
        return because(error, variant)
    result = Result(allowed=found.allowed, control=found.control)
    result.error = found.error if found.error == found.error else None
    if not found.error <= found.allowed:
        result.state, result.reason = "wrong", f"error {found.error:.2g}, at most {found.allowed:.2g} is allowed"
    return result


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
        chunks: of a video. videos: how many are measured. warm_up: chunks of a video in front of them.
        steady: the first chunk of a video whose time counts. timed: whether times are taken.
    """

    chunks: int
    videos: int
    warm_up: int
    steady: int = FULL
    timed: bool = True

    @staticmethod
    def of(frames: int, timed: bool) -> Plan:
        """For a video of so many frames: at least three steady chunks, behind a video that evicts twice."""
        chunks = frames // CHUNK
        return Plan(chunks, 1 if chunks - FULL >= 3 else 3, CHUNKS, timed=timed)


class Rollouts:
    """One resolution and length: all variants that are right, side by side.

    Args:
        observe: told after every chunk of a variant, and what it took.
        known: told what is known when all times are taken, and after every variant that was looked into.
    """

    def __init__(
        self,
        model: nn.Module,
        video: Video,
        settings: Settings,
        plan: Plan,
        observe: Callable[[Variant, int, Spent], None] = lambda *_: None,
        known: Callable[[dict[str, Result]], None] = lambda _: None,
    ) -> None:
        self.known = known
        self.model, self.video, self.settings, self.plan, self.observe = model, video, settings, plan, observe
        self.on_gpu = settings.device.type == "cuda"

    def run(self, batch: Sequence[Variant], results: dict[str, Result], number: int) -> None:
        """Fills in the results of the variants of a batch, which are in memory together."""
        plan, sides = self.plan, dict[Variant, Side]()
        for variant in batch:
            self._guarded(variant, sides, results, lambda v=variant: sides.update({v: self._built(v)}))
        graphs = {variant: [0, 0] for variant in sides}
        times: dict[Variant, list[tuple[int, Spent]]] = {variant: [] for variant in sides}
        flows: dict[Variant, Any] = {}

        def step(variant: Variant, chunk: int, measured: bool) -> None:
            side, before = sides[variant], counters["stats"]["unique_graphs"]
            replays = side.replays()
            spent, last = self._chunk(side, chunk)
            self.observe(variant, chunk, spent)
            graphs[variant][measured] += counters["stats"]["unique_graphs"] - before
            if replays is not None:  # sides share graphs: only those of this chunk are this side's
                result = results[variant.name]
                result.replays = (result.replays or 0) + side.replays() - replays
            if not all(bool(flow.isfinite().all()) for flow in last):
                raise ArithmeticError(f"chunk {chunk} is not a number")
            if measured:
                times[variant].append((chunk, spent))
                flows[variant] = last

        for measured in [False] + [True] * plan.videos:
            for chunk in range(plan.chunks if measured else plan.warm_up):
                for variant in list(sides):
                    self._guarded(variant, sides, results, lambda v=variant, c=chunk, m=measured: step(v, c, m))
        for variant in list(sides):
            result = results[variant.name]
            result.batch, (result.graphs, result.later_graphs) = number, graphs[variant]
            result.held_bytes = sides[variant].held()
            if plan.timed:
                self._timed(result, times[variant])
        self.known(results)
        if plan.timed and self.on_gpu:
            for variant in list(sides):
                try:
                    self._looked_into(sides[variant], results[variant.name])
                except Exception as error:  # its times are good
                    results[variant.name].note = f"not looked into: {first_line(error)}"
                self.known(results)
        self._differences(flows, results)
        for side in sides.values():
            side.close()

    def _guarded(
        self, variant: Variant, sides: dict[Variant, Side], results: dict[str, Result], run: Callable[[], Any]
    ) -> None:
        """Runs something of a variant. If it raises, the variant is out."""
        try:
            run()
        except Exception as error:
            checked = results[variant.name]
            results[variant.name] = replace(because(error, variant), error=checked.error, allowed=checked.allowed)
            side = sides.pop(variant, None)
            if side is not None:
                side.close()

    def _built(self, variant: Variant) -> Side:
        return variant.build(self.model, self.settings)

    def _chunk(self, side: Side, chunk: int) -> tuple[Spent, list[torch.Tensor]]:
        """What a chunk takes, and its flows."""
        passes, clocks = self.video.passes(chunk), (time.perf_counter, time.process_time, time.thread_time)
        self._wait()
        begin = [clock() for clock in clocks]
        flows = side.chunk(chunk, passes, self.video.context)
        self._wait()
        return Spent(*((clock() - at) * 1e3 for clock, at in zip(clocks, begin, strict=True))), flows

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _timed(self, result: Result, times: Sequence[tuple[int, Spent]]) -> None:
        """What the measured chunks took."""
        result.every_ms = [spent.wall for _, spent in times]
        steady = [spent for chunk, spent in times if chunk >= self.plan.steady]
        wall, processor, _ = zip(*steady, strict=True)
        result.chunk_ms, result.processor_ms = statistics.median(wall), statistics.median(processor)
        result.slowest_over_median = max(wall) / result.chunk_ms
        result.fps = CHUNK * PIXEL_FRAMES / result.chunk_ms * 1e3

    def _looked_into(self, side: Side, result: Result) -> None:
        """On a GPU one more chunk for the memory that it takes, and one under the profiler."""
        assert result.chunk_ms is not None
        assert result.held_bytes is not None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._chunk(side, self.plan.chunks)
        result.peak_bytes = torch.cuda.max_memory_allocated() - before + result.held_bytes
        result.parts, result.kernels = parts(lambda: self._chunk(side, self.plan.chunks + 1), result.chunk_ms)

    def _differences(self, flows: dict[Variant, Any], results: dict[str, Result]) -> None:
        """How far the whole model's last chunk is from that of the first variant which means the same."""
        first: dict[str, Variant] = {}
        for variant in flows:
            meaning = DENSE if variant.meaning == "self_forcing" else variant.meaning
            base = first.setdefault(meaning, variant)
            results[variant.name].difference = None if base is variant else error_of(flows[variant], flows[base])


def batches(variants: Sequence[Variant], config: Any, itemsize: int, room: float) -> list[list[Variant]]:
    """Variants in their order, as many together as fit into `room` bytes."""
    found: list[list[Variant]] = [[]]
    left = room
    for variant in variants:
        size = variant.cache_bytes(config, itemsize)
        if size > left and found[-1]:
            found.append([])
            left = room
        found[-1].append(variant)
        left -= size
    return found
