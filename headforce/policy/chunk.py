"""Chunks and schedules: how a stream of frames is cut for denoising."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import HeadforceError


@dataclass(frozen=True, slots=True)
class Chunk:
    """`frames` consecutive frames denoised together, beginning at frame `start`; the `index`-th chunk of its stream.

    Frames 0..start-1 are committed when the chunk runs. A pass may send `lead` frames right in front of the chunk too,
    whose keys and values it does not write: they read what frame `start` reads, and nothing reads them.
    """

    index: int
    start: int
    frames: int
    lead: int = 0

    @property
    def stop(self) -> int:
        """The first frame after the chunk."""
        return self.start + self.frames

    @property
    def queries(self) -> range:
        """The frames of the chunk: the query frames."""
        return range(self.start, self.stop)

    def then(self, frames: int) -> Chunk:
        """The chunk that follows this one, `frames` frames long."""
        return Chunk(self.index + 1, self.stop, frames)


MOST_CHUNKS = 100_000
"""Of a schedule that is read from text: each is planned on its own."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The chunk sizes of a stream, in frames. Iterating gives the chunks.

    >>> [chunk.start for chunk in Schedule.parse("1,3x2,2")]
    [0, 1, 4, 7]
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(type(size) is not int or size < 1 for size in self.sizes):
            raise HeadforceError("HF-SCHEDULE", found=repr(self.sizes), needed="one or more chunk sizes of 1 or more")

    @staticmethod
    def parse(text: str) -> Schedule:
        """Reads `3x14` (fourteen chunks of 3 frames) or a list such as `1,3x7,2`; HF-SCHEDULE otherwise."""
        sizes: list[int] = []
        for part in text.split(","):
            size, times, count = part.strip().partition("x")
            if not (_is_count(size) and (_is_count(count) if times else True)):
                raise HeadforceError("HF-SCHEDULE", found=f"{text!r:.60}", needed="chunk sizes such as 3x14 or 1,3x7,2")
            more = int(count) if times else 1
            if len(sizes) + more > MOST_CHUNKS:
                raise HeadforceError("HF-SCHEDULE", found=f"{text!r:.60}", needed=f"at most {MOST_CHUNKS} chunks")
            sizes += [int(size)] * more
        return Schedule(tuple(sizes))

    @property
    def frames(self) -> int:
        """Frames of the whole stream."""
        return sum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Chunk]:
        start = 0
        for index, size in enumerate(self.sizes):
            yield Chunk(index, start, size)
            start += size

    def __str__(self) -> str:
        groups: list[list[int]] = []
        for size in self.sizes:
            if groups and groups[-1][0] == size:
                groups[-1][1] += 1
            else:
                groups.append([size, 1])
        return ",".join(str(size) if count == 1 else f"{size}x{count}" for size, count in groups)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 10 and int(text) > 0
