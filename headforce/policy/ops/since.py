"""`since(first)`: everything but the beginning."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("since")
@dataclass(frozen=True)
class Since(Op):
    """Committed frames from frame `first` of the stream on; to be used as a filter, behind `&`.

    `window(6) & since(1)` is the window of a head whose cache never had frame 0 (Dummy Forcing, arXiv 2601.20499).
    """

    first: int

    def __post_init__(self) -> None:
        self.need_count("first")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(self.first, chunk.start)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if f >= self.first}

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Max(0, s - self.first)

    def settles(self) -> int:
        return self.first
