"""Sets of frames, exact: one Python integer whose bit f says whether frame f is in the set.

A stream has at most a few thousand frames, so a set is a few hundred bytes, union and intersection are single machine
loops, and two sets are equal exactly when their integers are. Intervals and strides are how sets are made and printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FrameSet:
    """An immutable set of frame indices (0, 1, 2, ...).

    >>> str(FrameSet.interval(2, 5) | FrameSet.stride(phase=0, period=6, stop=20))
    '0, 2-4, 6, 12, 18'
    """

    bits: int = 0

    @staticmethod
    def of(frames: Iterable[int]) -> FrameSet:
        """The set of the given frames; a negative one is a ValueError."""
        listed = list(frames)
        if not listed:
            return EMPTY
        if min(listed) < 0:
            raise ValueError(f"frame {min(listed)}")
        # Segments of frames may be many thousands: one buffer instead of a number for each of them.
        buffer = bytearray(max(listed) // 8 + 1)
        for frame in listed:
            buffer[frame >> 3] |= 1 << (frame & 7)
        return FrameSet(int.from_bytes(buffer, "little"))

    @staticmethod
    def interval(start: int, stop: int) -> FrameSet:
        """Frames start <= f < stop; empty when stop <= start. A negative start counts as 0."""
        start = max(0, start)
        return FrameSet(((1 << (stop - start)) - 1) << start) if stop > start else EMPTY

    @staticmethod
    def stride(phase: int, period: int, stop: int) -> FrameSet:
        """Frames f < stop with f = phase (mod period)."""
        first = phase % period
        if stop <= first:
            return EMPTY
        count = -(-(stop - first) // period)
        if count == 1:
            return FrameSet(1 << first)
        # A number with a one in every period-th place is a geometric series.
        return FrameSet(((1 << (period * count)) - 1) // ((1 << period) - 1) << first)

    def __or__(self, other: FrameSet) -> FrameSet:
        return FrameSet(self.bits | other.bits)

    def __and__(self, other: FrameSet) -> FrameSet:
        return FrameSet(self.bits & other.bits)

    def __sub__(self, other: FrameSet) -> FrameSet:
        return FrameSet(self.bits & ~other.bits)

    def __le__(self, other: FrameSet) -> bool:
        return not self.bits & ~other.bits

    def __contains__(self, frame: int) -> bool:
        return frame >= 0 and bool(self.bits >> frame & 1)

    def __iter__(self) -> Iterator[int]:
        """The frames in rising order."""
        digits = bin(self.bits)[:1:-1]
        frame = digits.find("1")
        while frame >= 0:
            yield frame
            frame = digits.find("1", frame + 1)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __bool__(self) -> bool:
        return self.bits != 0

    def below(self, stop: int) -> FrameSet:
        """The frames f < stop."""
        return FrameSet(self.bits & ((1 << max(0, stop)) - 1))

    def newest(self, count: int) -> FrameSet:
        """The `count` largest frames (all of them if there are fewer)."""
        if len(self) <= count:
            return self
        if not count:
            return EMPTY
        digits, place = bin(self.bits), 1
        for _ in range(count):
            place = digits.find("1", place + 1)
        least = len(digits) - 1 - place
        return FrameSet(self.bits >> least << least)

    def intervals(self) -> Iterator[tuple[int, int]]:
        """The maximal intervals [start, stop) in rising order."""
        bits, base = self.bits, 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            length = (~bits & (bits + 1)).bit_length() - 1
            yield base + skip, base + skip + length
            bits >>= length
            base += skip + length

    def __str__(self) -> str:
        """`0, 2-4, 12-36/6`: intervals, and four or more single frames of one stride as first-last/stride."""
        return ", ".join(_spell(list(self.intervals()))) or "none"


EMPTY = FrameSet()


def _spell(intervals: list[tuple[int, int]]) -> Iterator[str]:
    i = 0
    while i < len(intervals):
        start, stop = intervals[i]
        end = i
        if stop == start + 1 and i + 1 < len(intervals):
            step = intervals[i + 1][0] - start
            while end + 1 < len(intervals) and intervals[end + 1] == (
                intervals[end][0] + step,
                intervals[end][1] + step,
            ):
                end += 1
        if end - i >= 3:
            yield f"{start}-{intervals[end][0]}/{intervals[i + 1][0] - start}"
            i = end + 1
        else:
            yield str(start) if stop == start + 1 else f"{start}-{stop - 1}"
            i += 1
