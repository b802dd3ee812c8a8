"""Reads as a target on the host takes them: heads that read alike together, and their rows side by side.

Heads of one rule lie at a constant distance, in the pool and in the model's own cache, so a run of rows is a strided
view over all of them, and a single run needs no copy. Several runs, and runs that turn, are copied into one buffer.
Readings of a chunk's query frames follow each other in the same buffer, and what lies there already is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from ..kernels.reference import READ_FIELDS, RUN_FIELDS


class Run(NamedTuple):
    """See `RUN_FIELDS`; rows count from where the region of a head begins, or in an operand from its first row."""

    row: int
    rows: int
    shift: int


class Copy(NamedTuple):
    """A run that is copied to row `at` of the buffer."""

    at: int
    run: Run


@dataclass(frozen=True)
class Gather:
    """How the `rows` rows of a reading come to lie side by side: as the `run` that they are, or by `copies` in front of
    which the readings before have gone."""

    rows: int
    run: Run | None
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What some query rows read."""

    query_row: int
    query_rows: int
    keys: Gather
    values: Gather


@dataclass(frozen=True)
class Block:
    """Heads of one batch row; the rows of each begin `step` pool rows behind those of the one before."""

    batch: int
    heads: tuple[int, ...]
    first_row: int
    step: int


@dataclass(frozen=True)
class Group:
    """Heads that read alike, but for where their regions begin."""

    readings: tuple[Reading, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def buffer_rows(self) -> tuple[int, int]:
        """Rows of a head that keys and values need in a buffer."""
        keys, values = (
            max((gather.rows for gather in gathers if gather.run is None), default=0)
            for gathers in zip(*((reading.keys, reading.values) for reading in self.readings), strict=True)
        )
        return keys, values


@dataclass(frozen=True)
class Reads:
    """All of a layer. `shifts` are those that turn keys, each once."""

    groups: tuple[Group, ...]
    shifts: tuple[int, ...]


@lru_cache(maxsize=256)  # all passes of a chunk have the same tables
def reads_of(reads: bytes, runs: bytes, paged: bool) -> Reads:
    """The tables of a layer, see `kernels.reference.ragged_attention`; `paged`: rows are those of pages."""
    rows_of_reads, rows_of_runs = (
        np.frombuffer(table, dtype=np.int32).reshape(-1, len(fields)).tolist()
        for table, fields in ((reads, READ_FIELDS), (runs, RUN_FIELDS))
    )
    groups = tuple(_groups(rows_of_reads, rows_of_runs, paged))
    copies = (copy for group in groups for reading in group.readings for copy in reading.keys.copies)
    return Reads(groups, tuple(sorted({copy.run.shift for copy in copies} - {0})))


_Read = tuple[int, int, tuple[Run, ...]]
"""(first query row, query rows, what they read)."""


def _groups(reads: list[list[int]], runs: list[list[int]], paged: bool) -> Iterator[Group]:
    of_cell: dict[tuple[int, int], list[tuple[int, int, list[list[int]]]]] = {}
    for batch, head, query_row, query_rows, first, count, *_ in reads:
        if query_rows and count:
            of_cell.setdefault((batch, head), []).append((query_row, query_rows, runs[first : first + count]))
    alike: dict[tuple[_Read, ...], tuple[list[tuple[int, int]], list[int]]] = {}
    for cell, its_reads in of_cell.items():
        # In pages, every head has its own region; in an operand, none has.
        base = its_reads[0][2][0][0] if paged else 0
        shape = tuple(
            (row, rows, tuple(Run(run[0] - base, run[1], run[2]) for run in its_runs))
            for row, rows, its_runs in sorted(its_reads)
        )
        cells, bases = alike.setdefault(shape, ([], []))
        cells.append(cell)
        bases.append(base)
    for shape, (cells, bases) in alike.items():
        ordered = _in_order([its_runs for _, _, its_runs in shape])
        keys, values = _gathers(ordered), _gathers([[run._replace(shift=0) for run in its] for its in ordered])
        readings = (Reading(row, rows, k, v) for (row, rows, _), k, v in zip(shape, keys, values, strict=True))
        yield Group(tuple(readings), tuple(_blocks(cells, bases)))


def _in_order(readings: Sequence[Sequence[Run]]) -> list[list[Run]]:
    """What all readings read comes first, and then the rest, from far behind on: most of it then stays in its place
    from reading to reading."""
    common = set.intersection(*map(set, readings))
    return [sorted(runs, key=lambda run: (run not in common, 0 if run in common else -run.shift)) for runs in readings]


def _gathers(readings: Sequence[Sequence[Run]]) -> Iterator[Gather]:
    there: set[Copy] = set()
    for runs in readings:
        rows = sum(run.rows for run in runs)
        if len(runs) == 1 and not runs[0].shift:
            yield Gather(rows, runs[0])
            continue
        begins = np.cumsum([0, *(run.rows for run in runs)]).tolist()
        needed = [Copy(at, run) for at, run in zip(begins, runs, strict=False)]
        yield Gather(rows, None, tuple(copy for copy in needed if copy not in there))
        there = set(needed)


def _blocks(cells: list[tuple[int, int]], bases: list[int]) -> Iterator[Block]:
    start = 0
    for i in range(1, len(cells) + 1):
        step = bases[start + 1] - bases[start] if i > start + 1 else 0
        ends = i == len(cells) or cells[i][0] != cells[start][0]
        if ends or (i > start + 1 and bases[i] - bases[i - 1] != step) or bases[i] < bases[i - 1]:
            yield Block(cells[start][0], tuple(head for _, head in cells[start:i]), bases[start], step)
            start = i
