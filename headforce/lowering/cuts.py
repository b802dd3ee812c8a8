"""Into how many parts the reads of a layer are cut: the cuts with which a small simulation of the launch is over first.

Time is in rows of keys: how long a program takes for one of them. A processor runs one program at a time, as tiles of
128 rows leave it no memory for a second. What traffic takes beside programs follows from data sheets, and is much the
same from one GPU to the next; it was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from typing import NamedTuple

PARTS = 4
"""Tiles of all parts of reads that are cut, for each processor: that many at most."""

MOST_PARTS = 8

START = 64
"""What a program takes besides its keys."""

MOVED = 256
"""What a processor takes to write the results of a tile, and to read them again.

128 rows of 128 sums in float32 are 128 KiB, there and back. With its share of an H100's bandwidth that takes a
processor 5 us, as long as 240 rows of keys; head dims make no difference to that.
"""

Ints = tuple[int, ...]

Free = list[tuple[int, int]]
"""From when on how many processors are free: a heap, with few entries, as programs are alike."""


class Cut(NamedTuple):
    """The parts of each read, those in front of `first` whole; the `programs` that they make, and `parted` among them,
    which leave their results for the second launch."""

    parts: Ints
    first: int
    programs: int
    parted: int


@lru_cache(maxsize=4096)
def best_parts(tiles: Ints, work: Ints, processors: int, room: int) -> Ints:
    """The parts of each read: those with the least `predicted` time, and among them those that cut least.

    Args:
        tiles: of each read; `work`: the rows that it reads, which do not rise from one read to the next. None is 0.
        room: how many tiles all parts of reads that are cut may have together.
    """
    frees = [[(0, processors)]]  # when each read is started, if those in front of it are whole
    for t, w in zip(tiles, work, strict=True):
        frees.append(_after(frees[-1], START + w, t, processors))
    best, least = Cut((1,) * len(tiles), 0, sum(tiles), 0), float(max(frees[-1])[0])
    total = sum(t * w for t, w in zip(tiles, work, strict=True))
    for cut in (*_long_ones(tiles, work, total / processors), *_last_ones(tiles, work, processors, room)):
        # If no processor ever waited it would take as long as this; where that is no gain nothing is simulated.
        bound = (total + START * cut.programs) / processors + _combining(cut.parted, processors)
        if 0 < cut.parted <= room and bound <= least:
            rest = slice(cut.first, None)
            time = predicted(tiles[rest], work[rest], cut.parts[rest], processors, frees[cut.first])
            if (time, cut.parted) < (least, best.parted):
                best, least = cut, time
    return best.parts


def _long_ones(tiles: Ints, work: Ints, share: float) -> Iterator[Cut]:
    """Parts of about equal work, some for each processor, whose share of all work is given."""
    for each in range(1, PARTS + 1):
        goal = max(1.0, share / each)
        parts = tuple(min(max(int(w / goal), 1), MOST_PARTS) for w in work)
        parted = sum(t * p for t, p in zip(tiles, parts, strict=True) if p > 1)
        yield Cut(parts, 0, sum(t * p for t, p in zip(tiles, parts, strict=True)), parted)


def _last_ones(tiles: Ints, work: Ints, processors: int, room: int) -> Iterator[Cut]:
    """The shortest reads in equally many parts each, and the others whole, so that no processor waits at the end."""
    whole, cut, before = sum(tiles), 0, 0
    for first in reversed(range(len(tiles))):
        cut += tiles[first]
        if cut - before < processors // 4 and first:
            continue  # steps as small as that make no difference
        before = cut
        for parts in range(2, min(MOST_PARTS, room // cut) + 1):
            each = (1,) * first + (parts,) * (len(tiles) - first)
            yield Cut(each, first, whole + cut * (parts - 1), cut * parts)


def predicted(tiles: Ints, work: Ints, parts: Ints, processors: int, free: Free | None = None) -> float:
    """When attention is over: both launches, the reads as they are cut, and processors `free` from then on."""
    counts: dict[int, int] = {}
    for t, w, p in zip(tiles, work, parts, strict=True):
        length = START - -w // p
        counts[length] = counts.get(length, 0) + t * p
    parted = sum(t * p for t, p in zip(tiles, parts, strict=True) if p > 1)
    return makespan(sorted(counts.items(), reverse=True), processors, free) + _combining(parted, processors)


def _combining(parted: int, processors: int) -> float:
    """What it takes to leave the results of so many programs and to put them together."""
    return START + MOVED * parted / processors if parted else 0.0


def makespan(programs: Iterable[tuple[int, int]], processors: int, free: Free | None = None) -> int:
    """When the last program is over, if each in its turn is started on the first processor that is free.

    Args:
        programs: how long they take and how many take as long, in the order in which they are started.
        free: of the processors; None if all are from the beginning.
    """
    free = free or [(0, processors)]
    for length, count in programs:
        free = _after(free, length, count, processors)
    return max(free)[0]


def _after(free: Free, length: int, left: int, processors: int) -> Free:
    """What is free after so many programs that are equally long."""
    free = list(free)
    if left > processors and max(free)[0] - free[0][0] <= length:
        # No processor is behind by more than one program, so each of them gets one before any gets another.
        rounds, left = divmod(left, processors)
        free = [(time + rounds * length, count) for time, count in free]
    while left:
        time, count = heappop(free)
        while free and free[0][0] == time:
            count += heappop(free)[1]
        taken = min(count, left)
        heappush(free, (time + length, taken))
        if count > taken:
            heappush(free, (time, count - taken))
        left -= taken
    return free
