"""Tables: the plan of a chunk as integer arrays that kernels read, one set for every layer.

All layers share one shape, which depends on the regions and on the frames of a chunk, not on what is read: captured
graphs go on using the same tensors while a cache fills. Every head of every batch row has its own fixed part of the run
table, so heads are independent of each other and the arrays are filled by whole-array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..kernels.reference import READ_FIELDS, RUN_FIELDS
from ..policy import Chunk
from .lane import Lane
from .plan import HeadPlan, Reading
from .schedule import part_tiles, schedule
from .stream import Stream

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Regions:
    """Where the pages of every head are: `base` and `size`, both [L, B, H], in pages; `pages` is the sum."""

    base: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @staticmethod
    def of(stream: Stream) -> Regions:
        """Heads with one lane lie next to each other, batch row by batch row, so that they form one strided block."""
        pages = np.array([lane.slots.pages for lane in stream.lanes], dtype=np.int64)
        base = np.zeros(stream.lane_of.shape, dtype=np.int64)
        page = 0
        for layer, lane_of in enumerate(stream.lane_of):
            for lane in dict.fromkeys(lane_of.flat):
                members = lane_of == lane
                count = int(members.sum())
                base[layer][members] = page + pages[lane] * np.arange(count)
                page += int(pages[lane]) * count
        return Regions(base, pages[stream.lane_of])

    @property
    def pages(self) -> int:
        return int(self.size.sum())


@dataclass(frozen=True)
class Tables:
    """The arrays of one chunk.

    Attributes:
        reads: [L, B * H * G, 8], see `READ_FIELDS`; G is the most readings that a head may have.
        runs: [L, B * H * R, 3], see `RUN_FIELDS`; R is the most runs that a head may have.
        pages: [L, B * H', n], the page of every frame of the current chunk, for the H' heads of K and V.
    """

    reads: Ints
    runs: Ints
    pages: npt.NDArray[np.int64]


def build_tables(
    stream: Stream, regions: Regions, rows: int, canonical: bool, processors: int = 0, share: int = 1
) -> Tables:
    """The tables of the stream's current chunk, for pages of `rows` rows that `share` query heads each read.

    With `canonical`, keys are read in the order of their frames, the chunk last; otherwise in the order of the pages,
    which makes longer runs.
    """
    assert stream.chunk is not None
    assert stream.plan is not None
    plans = [stream.plan.heads[stream.plan.which[lane.first]] for lane in stream.lanes]
    parts = [
        [_runs(reading, stream.chunk if plan.reads_chunk else None, lane, rows, canonical) for reading in plan.readings]
        for lane, plan in zip(stream.lanes, plans, strict=True)
    ]
    lane_of, base = np.repeat(stream.lane_of, share, axis=2), np.repeat(regions.base * rows, share, axis=2)
    reads, runs = fill(stream.chunk, plans, parts, lane_of, base, rows, _room(stream), processors)
    layers, batch, heads = regions.base.shape
    pages = np.zeros((layers, batch, heads, stream.chunk.frames), dtype=np.int64)
    for i, lane in enumerate(stream.lanes):
        members = stream.lane_of == i
        pages[members] = regions.base[members][:, None] + [lane.slots.slot[f] for f in stream.chunk.queries]
    return Tables(reads, runs, pages.reshape(layers, batch * heads, -1))


def fill(
    chunk: Chunk,
    plans: Sequence[HeadPlan],
    parts: Sequence[Sequence[Ints]],
    which: npt.NDArray[np.int32],
    base: npt.NDArray[np.int64],
    rows: int,
    room: tuple[int, int],
    processors: int = 0,
) -> tuple[Ints, Ints]:
    """The arrays `reads` and `runs`, see `Tables`.

    Args:
        plans: what heads read; the plan of a head is `which[l, b, h]`, where b may be one for all rows of the batch.
        parts: [plan][reading], its runs [n, 3].
        base: [L, B, H], the row from which a head's runs count. rows: rows of a frame.
        room: G and R of `Tables`. processors: of the device, see `schedule`.
    """
    layers, batch, heads = base.shape
    readings, most = room
    most += -most % 4  # every layer's runs begin at a multiple of 16 bytes, or its launches would be compiled anew
    reads = np.zeros((layers, batch, heads, readings, len(READ_FIELDS)), dtype=np.int32)
    runs = np.zeros((layers, batch, heads, most, len(RUN_FIELDS)), dtype=np.int32)
    reads[..., 0] = np.arange(batch)[:, None, None]
    reads[..., 1] = np.arange(heads)[:, None]
    key_rows = np.zeros((layers, batch, heads, readings), dtype=np.int64)
    first_run = np.broadcast_to((np.arange(batch * heads) * most).reshape(batch, heads), base.shape)
    which = np.broadcast_to(which, base.shape)
    for i, (plan, its_parts) in enumerate(zip(plans, parts, strict=True)):
        members = which == i
        relative = np.concatenate(its_parts)
        part = np.repeat(relative[None], np.count_nonzero(members), axis=0)
        part[..., 0] += base[members][:, None].astype(np.int32)
        runs[members, : len(relative)] = part
        begin = 0
        for j, (reading, its_runs) in enumerate(zip(plan.readings, its_parts, strict=True)):
            first, stop = reading.queries[0] - chunk.start, reading.queries[-1] + 1 - chunk.start
            query_row = (first + chunk.lead) * rows if first else 0  # frames in front read what the first frame reads
            reads[members, j, 2:4] = query_row, (stop + chunk.lead) * rows - query_row
            reads[members, j, 4] = first_run[members] + begin
            reads[members, j, 5] = len(its_runs)
            key_rows[members, j] = its_runs[:, 1].sum()
            begin += len(its_runs)
    flat = reads.reshape(layers, -1, len(READ_FIELDS))
    for_parts = part_tiles(flat.shape[1], batch * heads, (chunk.lead + chunk.frames) * rows, processors)
    flat = schedule(flat, key_rows.reshape(layers, -1), processors, for_parts)
    return flat, runs.reshape(layers, -1, len(RUN_FIELDS))


def _room(stream: Stream) -> tuple[int, int]:
    """The most readings, and the most runs, that a head may have in a chunk as long as the current one."""
    assert stream.chunk is not None
    readings, runs = 1, 1
    for lane in stream.lanes:
        rules = filter(None, (lane.rule.rule, lane.rule.warmup))
        its_readings = stream.chunk.frames if any(rule.by_query for rule in rules) else 1
        readings = max(readings, its_readings)
        # At worst every page is a run of its own, and every part.
        runs = max(runs, its_readings * (lane.slots.pages - lane.slots.reserved + lane.rule.most_parts))
    return readings, runs


def _runs(reading: Reading, chunk: Chunk | None, lane: Lane, rows: int, canonical: bool) -> Ints:
    """The runs of a reading and of the chunk itself: rows that follow each other and share a shift become one."""
    frames = reading.frames
    if chunk is not None:
        frames = np.concatenate([frames, np.array([(frame, 0) for frame in chunk.queries], dtype=np.int32)])
    # (order in time, first row, rows, shift) of every piece
    pieces = [(frame, 0, lane.slots.slot[frame] * rows, rows, shift) for frame, shift in frames.tolist()]
    where = lane.where() if reading.parts else {}
    for item in reading.parts:
        for part, position in zip(item.parts, item.positions, strict=True):
            length = rows // part.of
            row = where[part.content] * length
            pieces.append((part.at, part.index, row, length, position - part.at))
    ordered = sorted(pieces, key=(lambda p: p[:2]) if canonical else (lambda p: (p[4], p[2])))
    return merged(np.array(ordered, dtype=np.int64).reshape(-1, 5)[:, 2:])


def merged(pieces: npt.NDArray[np.int64]) -> Ints:
    """The runs [n, 3] of pieces [m, 3], both (first row, rows, shift) in the order of reading."""
    if not len(pieces):
        return np.zeros((0, 3), dtype=np.int32)
    row, rows, shift = pieces.T
    begins = np.flatnonzero(np.r_[True, (row[:-1] + rows[:-1] != row[1:]) | (np.diff(shift) != 0)])
    return np.stack([row[begins], np.add.reduceat(rows, begins), shift[begins]], axis=1).astype(np.int32)
