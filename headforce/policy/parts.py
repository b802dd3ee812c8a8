"""Parts: what stores keep in pages of their own instead of whole frames.

A store of this kind copies what it keeps when it decides to keep it, so the frames it was made of can go. A segment of
a frame and the mean over several frames are parts alike: rows that share one position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Content = tuple[tuple[int, ...], int, int]
"""What a part is made of, wherever it lies: (its frames, which segment of a frame, of how many)."""


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Rows of a store's own pages.

    Attributes:
        at: the frame at whose index the keys of these rows stand.
        frames: the frames they were made of, rising.
        index: which of the `of` segments of its frame this is; 0 where the rows are made of whole frames.
        of: a part has 1 / of as many rows as a frame.
        place: where it lies in the store's pages, counted in such parts.
    """

    at: int
    frames: tuple[int, ...]
    index: int
    of: int
    place: int

    @property
    def content(self) -> Content:
        return self.frames, self.index, self.of


@dataclass(frozen=True)
class Mixture:
    """The definition of one row of a part: a weighted sum of rows of frames, of keys as they were before RoPE.

    Attributes:
        token: at whose place in a frame the key stands; its frame is the part's `at`.
        weights: (frame, token) -> weight.
    """

    token: int
    weights: Mapping[tuple[int, int], float]
