"""Checking what was planned: V1, the plan equals the oracle, and the tables the plan. Integers, exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet, HeadRule, Warmup, oracle
from ..policy.memory import Record
from .plan import ChunkPlan, HeadPlan
from .slots import SlotMap
from .stream import Stream

if TYPE_CHECKING:
    from .pool import PagePool


def check_plan(stream: Stream) -> None:
    """HF-VERIFY-PLAN if the stream's plan is not what the oracle says, or reads a frame that has no page of its own."""
    chunk, plan = stream.chunk, stream.plan
    assert chunk is not None
    assert plan is not None
    seen = set()
    for (layer, row, head), index in np.ndenumerate(stream.lane_of):
        rule, lane = stream.policy.rules[layer][head], stream.lanes[index]
        # Heads with the same rule, pages and plan are checked once.
        key = (rule.text, int(index), int(plan.which[layer, row, head]))
        if key in seen:
            continue
        seen.add(key)
        try:
            _check_slots(lane.slots, chunk)
            record = lane.memory.record if lane.memory else None
            _check_readings(rule, plan.of(layer, head, row), chunk, lane.slots.held, record)
        except HeadforceError as error:
            raise error.at(f"layer {layer}, batch row {row}, head {head}") from None


def _check_slots(slots: SlotMap, chunk: Chunk) -> None:
    pages = sorted(slots.slot.values())
    good = set(chunk.queries) <= set(slots.slot) and len(set(pages)) == len(pages)
    if not good or pages[0] < 0 or pages[-1] >= slots.pages:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            found=f"pages {slots.slot} (frame: page) in a region of {slots.pages}",
            needed=f"a page for every frame, and for frames {chunk.start} to {chunk.stop - 1} among them",
        )


def _check_readings(rule: HeadRule, plan: HeadPlan, chunk: Chunk, held: FrameSet, record: Record | None) -> None:
    warmup = Warmup(rule.warmup_chunks, rule.warmup) if rule.warmup is not None else None
    queries = sorted(query for reading in plan.readings for query in reading.queries)
    if queries != list(chunk.queries):
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            found=f"a plan for query frames {queries}",
            needed=f"one for each frame from {chunk.start} to {chunk.stop - 1}, once",
        )
    for reading in plan.readings:
        planned = {int(frame): int(frame + shift) for frame, shift in reading.frames}
        for query in reading.queries:
            wanted = oracle.read(rule.rule, warmup, chunk, query, record)
            if planned != wanted or any(frame not in held for frame in wanted):
                raise HeadforceError(
                    "HF-VERIFY-PLAN",
                    site=f"query frame {query}",
                    found=f"a plan that reads {planned} of the held frames {held}",
                    needed=f"{wanted} (frame: position)",
                )


def check_tables(pool: PagePool) -> None:
    """HF-VERIFY-PLAN if the tables on the device do not say what the stream's plan and pages say, entry by entry."""
    chunk, plan, regions = pool.stream.chunk, pool.stream.plan, pool.regions
    assert chunk is not None
    assert plan is not None
    assert regions is not None
    rows = pool.shape.rows
    layers, batch, heads = regions.base.shape
    for layer in range(layers):
        found = _decoded(pool.reads[layer].tolist(), pool.runs[layer].tolist(), chunk, rows)
        written = pool.pages[layer].tolist()
        for b, head in np.ndindex(batch, heads):
            slot = pool.stream.lane(layer, head, b).slots.slot
            base = int(regions.base[layer, b, head])
            current = [base + slot[frame] for frame in chunk.queries]
            _expect(layer, head, "pages written", written[b * heads + head], current)
            place = {frame: base + page for frame, page in slot.items()}
            _check_keys(found, plan.of(layer, head, b), place, chunk, (layer, b, head))
        _expect(layer, 0, "reads of no query", list(found), [])


def check_operands(
    policy: BoundPolicy, plan: ChunkPlan, arrays: Sequence[npt.NDArray[np.int32]], held: FrameSet, rows: int
) -> None:
    """HF-VERIFY-PLAN if a plan over a cache that the model keeps is not what the oracle says, or its tables not the
    plan. `held` are the past frames in front of the chunk."""
    place = {frame: i for i, frame in enumerate((*held, *plan.chunk.queries))}
    reads, runs = arrays
    batch = 1 + int(reads[..., 0].max())
    for layer in range(policy.layers):
        found = _decoded(reads[layer].tolist(), runs[layer].tolist(), plan.chunk, rows)
        for head in range(policy.heads):
            try:
                _check_readings(policy.rules[layer][head], plan.of(layer, head), plan.chunk, held, None)
            except HeadforceError as error:
                raise error.at(f"layer {layer}, head {head}") from None
            for b in range(batch):
                _check_keys(found, plan.of(layer, head), place, plan.chunk, (layer, b, head))
        _expect(layer, 0, "reads of no query", list(found), [])


Decoded = dict[tuple[int, int, int], list[tuple[float, int]]]
"""(batch row, head, query frame) -> (place, shift) of every frame that the tables name."""


def _decoded(reads: list[list[int]], runs: list[list[int]], chunk: Chunk, rows: int) -> Decoded:
    found: Decoded = {}
    for b, head, query_row, query_rows, first, count, *_ in reads:
        # Rows that are not whole frames come out as places that there are not.
        keys = [
            (row / rows + i, shift)
            for row, length, shift in runs[first : first + count]
            for i in range(-(-length // rows))
        ]
        if query_row % rows or query_rows % rows:
            keys.append((-1, 0))
        for query in range(query_row // rows, (query_row + query_rows) // rows):
            found.setdefault((b, head, chunk.start + query), []).extend(keys)
    return found


def _check_keys(
    found: Decoded, plan: HeadPlan, place: Mapping[int, int], chunk: Chunk, where: tuple[int, int, int]
) -> None:
    """Takes what the tables say of one head out of `found` and compares it with its plan."""
    layer, b, head = where
    current = [(place[frame], 0) for frame in chunk.queries]
    for reading in plan.readings:
        wanted = [(place[int(frame)], int(shift)) for frame, shift in reading.frames] + current
        for query in reading.queries:
            keys = found.pop((b, head, query), [])
            _expect(layer, head, f"(place, shift) of query frame {query}", sorted(keys), sorted(wanted))


def _expect(layer: int, head: int, what: str, found: Sequence[object], wanted: Sequence[object]) -> None:
    if found != wanted:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            site=f"layer {layer}, head {head}",
            found=f"tables with {what} {found}",
            needed=f"{wanted}",
        )
