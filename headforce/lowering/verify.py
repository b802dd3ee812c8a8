"""Checking what was planned: V1, the plan equals the oracle, and the tables the plan. Integers, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import HeadforceError
from ..policy import Chunk, HeadRule, Warmup, oracle
from .plan import HeadPlan
from .slots import SlotMap
from .stream import Lane, Stream

if TYPE_CHECKING:
    from .pool import PagePool


def check_plan(stream: Stream) -> None:
    """HF-VERIFY-PLAN if the stream's plan is not what the oracle says, or reads a frame that has no page of its own."""
    chunk, plan = stream.chunk, stream.plan
    assert chunk is not None
    assert plan is not None
    seen = set()
    for (layer, head), index in np.ndenumerate(stream.lane_of):
        rule, lane = stream.policy.rules[layer][head], stream.lanes[index]
        # Heads with the same rule, pages and plan are checked once.
        key = (rule.text, int(index), int(plan.which[layer, head]))
        if key in seen:
            continue
        seen.add(key)
        try:
            _check_slots(lane.slots, chunk)
            _check_readings(rule, lane, plan.of(layer, head), chunk)
        except HeadforceError as error:
            raise error.at(f"layer {layer}, head {head}") from None


def _check_slots(slots: SlotMap, chunk: Chunk) -> None:
    pages = sorted(slots.slot.values())
    good = set(chunk.queries) <= set(slots.slot) and len(set(pages)) == len(pages)
    if not good or pages[0] < 0 or pages[-1] >= slots.pages:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            found=f"pages {slots.slot} (frame: page) in a region of {slots.pages}",
            needed=f"a page for every frame, and for frames {chunk.start} to {chunk.stop - 1} among them",
        )


def _check_readings(rule: HeadRule, lane: Lane, plan: HeadPlan, chunk: Chunk) -> None:
    warmup = Warmup(rule.warmup_chunks, rule.warmup) if rule.warmup is not None else None
    record = lane.memory.record if lane.memory else None
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
            if planned != wanted or any(frame not in lane.slots.slot for frame in wanted):
                raise HeadforceError(
                    "HF-VERIFY-PLAN",
                    site=f"query frame {query}",
                    found=f"a plan that reads {planned} of the held frames {lane.slots.held}",
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
        reads, runs = pool.reads[layer].tolist(), pool.runs[layer].tolist()
        written = pool.pages[layer].tolist()
        found: dict[tuple[int, int, int], list[tuple[float, int]]] = {}
        for b, head, query_row, query_rows, first, count in reads:
            # Rows that are not whole pages come out as pages that there are not.
            keys = [
                (row / rows + i, shift)
                for row, length, shift in runs[first : first + count]
                for i in range(-(-length // rows))
            ]
            if query_row % rows or query_rows % rows:
                keys.append((-1, 0))
            for query in range(query_row // rows, (query_row + query_rows) // rows):
                found.setdefault((b, head, chunk.start + query), []).extend(keys)
        for b, head in np.ndindex(batch, heads):
            slot = pool.stream.lanes[pool.stream.lane_of[layer, head]].slots.slot
            base = int(regions.base[layer, b, head])
            current = [(base + slot[frame], 0) for frame in chunk.queries]
            _expect(layer, head, "pages written", written[b * heads + head], [page for page, _ in current])
            for reading in plan.of(layer, head).readings:
                wanted = [(base + slot[int(frame)], int(shift)) for frame, shift in reading.frames] + current
                for query in reading.queries:
                    keys = found.pop((b, head, query), [])
                    _expect(layer, head, f"(page, shift) of query frame {query}", sorted(keys), sorted(wanted))
        _expect(layer, 0, "reads of no query", list(found), [])


def _expect(layer: int, head: int, what: str, found: Sequence[object], wanted: Sequence[object]) -> None:
    if found != wanted:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            site=f"layer {layer}, head {head}",
            found=f"tables with {what} {found}",
            needed=f"{wanted}",
        )
