"""Faults that a compiler of per-head caches can have, put in on purpose: what checks the checker.

Each is a target that computes something else, or a change of what is planned or written while it is on. Importing this
module registers the targets; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..kernels import reference
from ..lowering import pool
from ..lowering.plan import ChunkPlan, HeadPlan, Planner, Reading
from ..lowering.targets import find_target, target
from ..lowering.watch import Launch
from ..policy import Chunk, FrameSet

PLAN, SITE, FULL, IDENTITY = "plan", "site", "full", "identity"
LEVELS = (PLAN, SITE, FULL, IDENTITY)
"""V1; V3 on a sample of rows; V3 on all rows and what pages hold; V2, the outputs against eager attention."""


@dataclass(frozen=True)
class Fault:
    """One fault. `on` puts it in; `target` is what computes attention meanwhile; `claimed` are the levels that say
    they catch it."""

    name: str
    claimed: frozenset[str]
    target: str = "sdpa"
    on: Callable[[], AbstractContextManager[Any]] = nullcontext


FAULTS: dict[str, Fault] = {}


def _target_fault(function: Callable[[Launch], Launch]) -> Callable[[Launch], Launch]:
    """Registers a target that computes another launch than it was given. It reads the right tables, so V1 is fine."""
    name = function.__name__

    @target(f"faulty_{name}")
    def faulty(*operands: Any) -> Tensor:
        return find_target("sdpa")(*function(Launch(*operands)))

    FAULTS[name] = Fault(name, frozenset({SITE, FULL, IDENTITY}), f"faulty_{name}")
    return function


def _with_runs(launch: Launch, change: Callable[[list[list[int]]], list[list[int]]]) -> Launch:
    """The runs of every read changed, in the rows that there are."""
    reads, runs, made = launch.reads.clone(), launch.runs.tolist(), []
    page = launch.key.shape[1] if launch.key.dim() == 3 else 1
    end = launch.key.shape[0] * page if launch.key.dim() == 3 else launch.key.shape[1]
    for read in reads:
        first, count = int(read[4]), int(read[5])
        mine = change([list(run) for run in runs[first : first + count]]) if count else []
        read[4], read[5] = len(made), len(mine)
        made += [[row, min(rows, end - row), shift] for row, rows, shift in mine if 0 <= row < end]
    return launch._replace(reads=reads, runs=launch.runs.new_tensor(made or [[0, 0, 0]]))


@_target_fault
def dropped_sink(launch: Launch) -> Launch:
    """The first run of a head that has several is not read."""
    return _with_runs(launch, lambda runs: runs[1:] or runs)


@_target_fault
def missing_last_page(launch: Launch) -> Launch:
    """The last run ends one row early: a tail that a kernel forgets."""
    return _with_runs(launch, lambda runs: [*runs[:-1], [runs[-1][0], runs[-1][1] - 1, runs[-1][2]]])


@_target_fault
def dropped_mask(launch: Launch) -> Launch:
    """Rows behind the end of the last run are read too: a kernel that does not mask its last block."""
    return _with_runs(launch, lambda runs: [*runs[:-1], [runs[-1][0], runs[-1][1] + 1, runs[-1][2]]])


@_target_fault
def layer_leak(launch: Launch) -> Launch:
    """Every row is read from another place of the pool: the region of another layer."""
    key, value = launch.key.flatten(0, 1), launch.value.flatten(0, 1)
    half = len(key) // 2
    key, value = (x.nan_to_num().roll(half, 0).view_as(y) for x, y in ((key, launch.key), (value, launch.value)))
    return launch._replace(key=key, value=value)


@_target_fault
def stale_position(launch: Launch) -> Launch:
    """Keys that are moved stand one frame from where they should."""
    return _with_runs(launch, lambda runs: [[row, rows, shift - 1 if shift else 0] for row, rows, shift in runs])


@_target_fault
def wrong_scale(launch: Launch) -> Launch:
    """Scores are scaled by a tenth more."""
    return launch._replace(scale=1.1 * launch.scale)


@_target_fault
def swapped_heads(launch: Launch) -> Launch:
    """The first two heads read each other's rows."""
    reads = launch.reads.clone()
    swap = {0: 1, 1: 0}
    reads[:, 1] = torch.tensor([swap.get(head, head) for head in reads[:, 1].tolist()], dtype=reads.dtype)
    return launch._replace(reads=reads)


@_target_fault
def nan_page(launch: Launch) -> Launch:
    """One row that is read holds NaN."""
    value = launch.value.clone()
    first = next(int(read[4]) for read in launch.reads if read[3] and read[5])
    value.flatten(0, 1)[int(launch.runs[first, 0])] = torch.nan
    return launch._replace(value=value)


def _state_fault(*claimed: str) -> Callable[[Callable[[], Iterator[None]]], Callable[[], Iterator[None]]]:
    def register(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        name = function.__name__
        FAULTS[name] = Fault(name, frozenset(claimed), on=contextmanager(function))
        return function

    return register


@_state_fault(PLAN, IDENTITY)
def slot_off_by_one() -> Iterator[None]:
    """Tables name the page behind the one where a frame is: what runs is what they say."""
    original = pool.build_tables

    def build(stream: Any, regions: Any, rows: int, *rest: Any) -> Any:
        tables = original(stream, regions, rows, *rest)
        runs = tables.runs.copy()
        runs[..., 0] = (runs[..., 0] + rows) % (regions.pages * rows - runs[..., 1] + 1)
        return replace(tables, runs=runs)

    with mock.patch.object(pool, "build_tables", build):
        yield


@_state_fault(PLAN, IDENTITY)
def skipped_commit() -> Iterator[None]:
    """The chunk before the running one never became history."""
    original = Planner.plan

    def plan(self: Planner, chunk: Chunk, *rest: Any, **more: Any) -> ChunkPlan:
        planned = original(self, chunk, *rest, **more)
        before = FrameSet.interval(chunk.start - chunk.frames, chunk.start)
        return replace(planned, heads=tuple(_without(head, before) for head in planned.heads))

    with mock.patch.object(Planner, "plan", plan):
        yield


def _without(head: HeadPlan, frames: FrameSet) -> HeadPlan:
    readings = []
    for reading in head.readings:
        kept = [[p for p in zip(i.frames, i.positions, strict=True) if p[0] not in frames] for i in reading.items]
        items = (
            replace(item, frames=tuple(f for f, _ in pairs), positions=tuple(p for _, p in pairs))
            for item, pairs in zip(reading.items, kept, strict=True)
        )
        readings.append(Reading(reading.queries, tuple(items), reading.parts))
    return replace(head, readings=tuple(readings))


@_state_fault(FULL, IDENTITY)
def committed_noisy_pass() -> Iterator[None]:
    """Pages keep what the first pass over a chunk wrote; the passes behind it change nothing."""
    original, by_pool = reference.write_pages, WeakTensorKeyDictionary()

    def write(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
        seen: set[tuple[int, ...]] = by_pool.setdefault(k_pool, set())
        where = tuple(pages.tolist())
        if where not in seen:
            seen.difference_update({other for other in seen if set(other) & set(where)})
            seen.add(where)
            original(key, value, k_pool, v_pool, pages)

    with mock.patch.object(reference, "write_pages", write):
        yield
