"""Tables: the plan of a chunk as integer arrays that kernels read, one set for every layer.

All layers share one shape, which depends on the regions and on the frames of a chunk, not on what is read: captured
graphs go on using the same tensors while a cache fills. Every head of every batch row has its own fixed part of the run
table, so heads are independent of each other and the arrays are filled by whole-array operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..kernels.reference import READ_FIELDS, RUN_FIELDS
from .plan import Reading
from .slots import SlotMap
from .stream import Stream

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Regions:
    """Where the pages of every head are: `base` and `size`, both [L, B, H], in pages; `pages` is the sum."""

    base: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]

    @staticmethod
    def of(stream: Stream, batch: int) -> Regions:
        """Heads with one lane lie next to each other, batch row by batch row, so that they form one strided block."""
        pages = np.array([lane.slots.pages for lane in stream.lanes], dtype=np.int64)
        size = np.repeat(pages[stream.lane_of][:, None], batch, axis=1)
        base = np.zeros_like(size)
        page = 0
        for layer, lane_of in enumerate(stream.lane_of):
            for lane in dict.fromkeys(lane_of.tolist()):
                members = np.flatnonzero(lane_of == lane)
                block = np.arange(batch * len(members)).reshape(batch, len(members))
                base[layer][:, members] = page + pages[lane] * block
                page += int(pages[lane]) * block.size
        return Regions(base, size)

    @property
    def pages(self) -> int:
        return int(self.size.sum())

    def page_ids(self, size: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The first `size` pages of every region, head after head."""
        return np.concatenate([np.arange(b, b + n) for b, n in zip(self.base.flat, size.flat, strict=True)])


@dataclass(frozen=True)
class Tables:
    """The arrays of one chunk.

    Attributes:
        reads: [L, B * H * G, 6], see `READ_FIELDS`; G is the most readings that a head may have.
        runs: [L, B * H * R, 3], see `RUN_FIELDS`; R is the most runs that a head may have.
        pages: [L, B * H, n], the page of every frame of the current chunk.
    """

    reads: Ints
    runs: Ints
    pages: npt.NDArray[np.int64]


def build_tables(stream: Stream, regions: Regions, rows: int, canonical: bool) -> Tables:
    """The tables of the stream's current chunk, for pages of `rows` rows.

    With `canonical`, keys are read in the order of their frames, the chunk last; otherwise in the order of the pages,
    which makes longer runs.
    """
    assert stream.chunk is not None
    assert stream.plan is not None
    layers, batch, heads = regions.base.shape
    lanes = [_lane_runs(stream, lane, rows, canonical) for lane in range(len(stream.lanes))]
    readings, most = _room(stream)
    reads = np.zeros((layers, batch, heads, readings, len(READ_FIELDS)), dtype=np.int32)
    runs = np.zeros((layers, batch, heads, most, len(RUN_FIELDS)), dtype=np.int32)
    pages = np.zeros((layers, batch, heads, stream.chunk.frames), dtype=np.int64)
    reads[..., 0] = np.arange(batch)[:, None, None]
    reads[..., 1] = np.arange(heads)[:, None]
    first_run = (np.arange(batch * heads) * most).reshape(batch, heads)
    for lane, parts in enumerate(lanes):
        layer, head = np.nonzero(stream.lane_of == lane)
        plan = stream.plan.of(*stream.lanes[lane].first)
        relative = np.concatenate(parts)
        part = runs[layer, :, head, : len(relative)]
        part[...] = relative
        part[..., 0] += (regions.base[layer, :, head] * rows)[..., None].astype(np.int32)
        runs[layer, :, head, : len(relative)] = part
        begin = 0
        for i, (reading, its_runs) in enumerate(zip(plan.readings, parts, strict=True)):
            query_row = (reading.queries[0] - stream.chunk.start) * rows
            reads[layer, :, head, i, 2:4] = query_row, len(reading.queries) * rows
            reads[layer, :, head, i, 4] = first_run[:, head].T + begin
            reads[layer, :, head, i, 5] = len(its_runs)
            begin += len(its_runs)
        slots = np.array([stream.lanes[lane].slots.slot[f] for f in stream.chunk.queries])
        pages[layer, :, head] = regions.base[layer, :, head][..., None] + slots
    return Tables(
        reads.reshape(layers, -1, len(READ_FIELDS)),
        runs.reshape(layers, -1, len(RUN_FIELDS)),
        pages.reshape(layers, batch * heads, -1),
    )


def _room(stream: Stream) -> tuple[int, int]:
    """The most readings, and the most runs, that a head may have in a chunk as long as the current one."""
    assert stream.chunk is not None
    readings, runs = 1, 1
    for lane in stream.lanes:
        rules = filter(None, (lane.rule.rule, lane.rule.warmup))
        its_readings = stream.chunk.frames if any(rule.by_query for rule in rules) else 1
        readings = max(readings, its_readings)
        runs = max(runs, its_readings * lane.slots.pages)  # at worst every page is a run of its own
    return readings, runs


def _lane_runs(stream: Stream, lane: int, rows: int, canonical: bool) -> list[Ints]:
    """The runs of every reading of a lane, rows counted from the start of the region."""
    assert stream.chunk is not None
    assert stream.plan is not None
    current = np.array([(frame, 0) for frame in stream.chunk.queries], dtype=np.int32)
    return [
        _merge(reading, current, stream.lanes[lane].slots, rows, canonical)
        for reading in stream.plan.of(*stream.lanes[lane].first).readings
    ]


def _merge(reading: Reading, current: Ints, slots: SlotMap, rows: int, canonical: bool) -> Ints:
    """Pages that follow each other and share a shift become one run."""
    frames = np.concatenate([reading.frames, current])
    pages = np.array([(slots.slot[int(frame)], shift) for frame, shift in frames], dtype=np.int64)
    if not canonical:
        pages = pages[np.lexsort((pages[:, 0], pages[:, 1]))]
    page, shift = pages.T
    begins = np.flatnonzero(np.r_[True, (np.diff(page) != 1) | (np.diff(shift) != 0)])
    lengths = np.diff(np.r_[begins, len(page)])
    return np.stack([page[begins] * rows, lengths * rows, shift[begins]], axis=1).astype(np.int32)
