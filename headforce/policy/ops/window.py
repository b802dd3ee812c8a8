"""`window(n)`: the newest n committed frames."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("window")
@dataclass(frozen=True)
class Window(Op):
    """The newest `size` committed frames. The current chunk is read besides and does not count; see `span`."""

    size: int

    def __post_init__(self) -> None:
        self.need_count("size")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(chunk.start - self.size, chunk.start)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if f >= chunk.start - self.size}

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.size)

    def settles(self) -> int:
        return self.size
