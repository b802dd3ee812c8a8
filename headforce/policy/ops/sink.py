"""`sink(n)`: the first n frames of the stream."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("sink")
@dataclass(frozen=True)
class Sink(Op):
    """The first `size` frames of the stream, for ever (attention sinks: StreamingLLM, arXiv 2309.17453)."""

    size: int

    def __post_init__(self) -> None:
        self.need_count("size")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(0, min(self.size, chunk.start))

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return {f for f in range(chunk.start) if f < self.size}

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.size)

    def settles(self) -> int:
        return self.size
