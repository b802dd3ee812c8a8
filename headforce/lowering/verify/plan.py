"""Checking what was planned: V1, the plan equals the oracle, and the tables the plan. Integers, exact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import HeadforceError
from ...policy import BoundPolicy, Chunk, FrameSet, HeadRule, Warmup, oracle
from ...policy.memory import Record
from ...policy.parts import Content
from ...policy.switch import Amended
from ..lane import Lane
from ..plan import ChunkPlan, HeadPlan
from ..slots import SlotMap
from ..stream import Stream

if TYPE_CHECKING:
    from ..pool import PagePool


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
            _check_parts(lane)
            record = lane.memory.explained() if lane.memory else None
            amended = stream.amended.get(rule.text)
            _check_readings(rule, plan.of(layer, head, row), chunk, lane.slots.held, record, amended)
        except HeadforceError as error:
            raise error.at(f"layer {layer}, batch row {row}, head {head}") from None


def _check_slots(slots: SlotMap, chunk: Chunk) -> None:
    pages = sorted(slots.slot.values())
    good = set(chunk.queries) <= set(slots.slot) and len(set(pages)) == len(pages)
    if not good or pages[0] < slots.reserved or pages[-1] >= slots.pages:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            found=f"pages {slots.slot} (frame: page) in a region of {slots.pages}, {slots.reserved} of them for parts",
            needed=f"a page for every frame, and for frames {chunk.start} to {chunk.stop - 1} among them",
        )


def _check_parts(lane: Lane) -> None:
    places = [(content[2], place) for content, place in lane.where().items()]
    if len(set(places)) != len(places):
        raise HeadforceError("HF-VERIFY-PLAN", found=f"parts in one place: {lane.where()}", needed="a place for each")


def _check_readings(
    rule: HeadRule,
    plan: HeadPlan,
    chunk: Chunk,
    held: FrameSet,
    record: Record | None,
    amended: Amended | None = None,
) -> None:
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
        parts = {
            (item.store, *part.content): position
            for item in reading.parts
            for part, position in zip(item.parts, item.positions, strict=True)
        }
        for query in reading.queries:
            wanted = oracle.read(rule.rule, warmup, chunk, query, record, amended)
            if planned != wanted or any(frame not in held for frame in wanted):
                raise HeadforceError(
                    "HF-VERIFY-PLAN",
                    site=f"query frame {query}",
                    found=f"a plan that reads {planned} of the held frames {held}",
                    needed=f"{wanted} (frame: position)",
                )
            wanted_parts = oracle.read_parts(rule.rule, warmup, chunk, query, record, amended)
            if parts != wanted_parts:
                raise HeadforceError(
                    "HF-VERIFY-PLAN",
                    site=f"query frame {query}",
                    found=f"a plan that reads the parts {parts}",
                    needed=f"{wanted_parts} ((store, frames, segment, of how many): position)",
                )


def check_tables(pool: PagePool) -> None:
    """HF-VERIFY-PLAN if the tables on the device do not say what the stream's plan and pages say, entry by entry."""
    chunk, plan, regions = pool.stream.chunk, pool.stream.plan, pool.regions
    assert chunk is not None
    assert plan is not None
    assert regions is not None
    rows = pool.shape.rows
    # The largest piece of which frames and parts are all made.
    of = {p.of for head in plan.heads for reading in head.readings for item in reading.parts for p in item.parts}
    grain = rows // math.lcm(*of)
    layers, batch, heads = regions.base.shape
    for layer in range(layers):
        found = _decoded(pool.reads[layer].tolist(), pool.runs[layer].tolist(), chunk, rows, grain)
        written = pool.pages[layer].tolist()
        for b, head in np.ndindex(batch, heads):
            lane = pool.stream.lane(layer, head, b)
            slot, base = lane.slots.slot, int(regions.base[layer, b, head])
            current = [base + slot[frame] for frame in chunk.queries]
            _expect(layer, head, "pages written", written[b * heads + head], current)
            readers = range(head * pool.shape.share, (head + 1) * pool.shape.share)
            place = {frame: (base + page) * rows for frame, page in slot.items()}
            parts = {content: (base * content[2] + at) * (rows // content[2]) for content, at in lane.where().items()}
            for reader in readers:
                _check_keys(found, plan.of(layer, head, b), (place, parts), chunk, (layer, b, reader), (rows, grain))
        _expect(layer, 0, "reads of no query", list(found), [])


def check_operands(
    policy: BoundPolicy, plan: ChunkPlan, arrays: Sequence[npt.NDArray[np.int32]], held: FrameSet, rows: int, batch: int
) -> None:
    """HF-VERIFY-PLAN if a plan over a cache that the model keeps is not what the oracle says, or its tables not the
    plan. `held` are the past frames in front of the chunk, of each of `batch` videos."""
    place = {frame: i * rows for i, frame in enumerate((*held, *plan.chunk.queries))}
    reads, runs = arrays
    for layer in range(policy.layers):
        found = _decoded(reads[layer].tolist(), runs[layer].tolist(), plan.chunk, rows, rows)
        for head in range(policy.heads):
            try:
                _check_readings(policy.rules[layer][head], plan.of(layer, head), plan.chunk, held, None)
            except HeadforceError as error:
                raise error.at(f"layer {layer}, head {head}") from None
            for b in range(batch):
                _check_keys(found, plan.of(layer, head), (place, {}), plan.chunk, (layer, b, head), (rows, rows))
        _expect(layer, 0, "reads of no query", list(found), [])


Decoded = dict[tuple[int, int, int], list[tuple[int, int]]]
"""(batch row, head, query frame) -> (first row, shift) of every piece of `grain` rows that the tables name."""


def _decoded(reads: list[list[int]], runs: list[list[int]], chunk: Chunk, rows: int, grain: int) -> Decoded:
    found: Decoded = {}
    for b, head, query_row, query_rows, first, count, *_ in reads:
        its_runs = runs[first : first + count]
        keys = [(row + i, shift) for row, length, shift in its_runs for i in range(0, length, grain)]
        if any(length % grain for _, length, _ in its_runs) or query_row % rows or query_rows % rows:
            keys.append((-1, 0))  # rows that are not whole pieces come out as a place that there is not
        for query in range(query_row // rows, (query_row + query_rows) // rows):
            found.setdefault((b, head, chunk.start - chunk.lead + query), []).extend(keys)
    return found


def _check_keys(
    found: Decoded,
    plan: HeadPlan,
    place: tuple[Mapping[int, int], Mapping[Content, int]],
    chunk: Chunk,
    where: tuple[int, int, int],
    sizes: tuple[int, int],
) -> None:
    """Takes what the tables say of one head out of `found` and compares it with its plan.

    `place` are the first rows of frames and of parts, `sizes` the rows of a frame and of a piece.
    """
    (layer, b, head), (rows, grain) = where, sizes
    for reading in plan.readings:
        read = [(place[0][int(frame)], rows, int(shift)) for frame, shift in reading.frames]
        read += [(place[0][frame], rows, 0) for frame in chunk.queries if plan.reads_chunk]
        for item in reading.parts:
            for part, position in zip(item.parts, item.positions, strict=True):
                read.append((place[1][part.content], rows // part.of, position - part.at))
        wanted = [(row + i, shift) for row, length, shift in read for i in range(0, length, grain)]
        in_front = range(chunk.start - chunk.lead, chunk.start) if chunk.start in reading.queries else ()
        for query in (*in_front, *reading.queries):
            keys = found.pop((b, head, query), [])
            _expect(layer, head, f"(row, shift) of query frame {query}", sorted(keys), sorted(wanted))


def _expect(layer: int, head: int, what: str, found: Sequence[object], wanted: Sequence[object]) -> None:
    if found != wanted:
        raise HeadforceError(
            "HF-VERIFY-PLAN",
            site=f"layer {layer}, head {head}",
            found=f"tables with {what} {found}",
            needed=f"{wanted}",
        )
