"""`older(than)`: everything that is not recent."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("older")
@dataclass(frozen=True)
class Older(Op):
    """Committed frames more than `than` frames before each query frame; to be used as a filter, behind `&`.

    Pyramid Forcing counts its recent frames back from each query frame and reads nothing else among them, so that
    frames of one chunk read different sets (arXiv 2605.13111).
    """

    than: int

    def __post_init__(self) -> None:
        self.need_count("than")

    @property
    def by_query(self) -> bool:
        return True

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(0, min(query - self.than, chunk.start))

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if query - f > self.than}

    def live(self, chunk: Chunk) -> FrameSet:
        return FrameSet.interval(0, chunk.start)  # every frame gets old

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return s

    def settles(self) -> int:
        return self.than
