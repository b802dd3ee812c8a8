"""`lag(offset)`: the frame a fixed distance back."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("lag")
@dataclass(frozen=True)
class Lag(Op):
    """The one frame that lies `offset` frames before each query frame, where it is committed.

    Query frames of one chunk read different frames (Pyramid Forcing's lagged heads, arXiv 2605.13111).
    """

    offset: int

    def __post_init__(self) -> None:
        self.need_count("offset")

    @property
    def by_query(self) -> bool:
        return True

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        frame = query - self.offset
        return FrameSet.interval(frame, min(frame + 1, chunk.start))

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if query - f == self.offset}

    def live(self, chunk: Chunk) -> FrameSet:
        return FrameSet.interval(chunk.start - self.offset, chunk.start)

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.offset)

    def settles(self) -> int:
        return self.offset
