"""`span(N)`: a window of N frames that counts the current chunk."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("span")
@dataclass(frozen=True)
class Span(Op):
    """The newest `size` frames, those of the current chunk included, as most published windows count.

    A chunk of n frames leaves room for size - n committed ones; a chunk longer than the span leaves none.
    """

    size: int

    def __post_init__(self) -> None:
        self.need_count("size")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(chunk.stop - self.size, chunk.start)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if f >= chunk.start + chunk.frames - self.size}

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.size - 1)  # when the chunk is a single frame

    def settles(self) -> int:
        return self.size
