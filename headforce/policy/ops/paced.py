"""`paced(size, first, every)`: a window that lets go only now and then."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("paced")
@dataclass(frozen=True)
class Paced(Op):
    """All frames until frame `first`; then the newest `size` as they were counted at frame `first`, and every `every`
    frames again. In between nothing is let go (Deep Forcing prunes every second chunk, arXiv 2512.05081).
    """

    size: int
    first: int
    every: int

    def __post_init__(self) -> None:
        self.need_count("size", "first", "every")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        begin = 0
        if chunk.start >= self.first:
            begin = self.first + (chunk.start - self.first) // self.every * self.every - self.size
        return FrameSet.interval(begin, chunk.start)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        counted = [f for f in range(self.first, chunk.start + 1) if (f - self.first) % self.every == 0]
        return {f for f in range(chunk.start) if not counted or f >= counted[-1] - self.size}

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, max(self.first - 1, self.size + self.every - 1))

    def settles(self) -> int:
        return self.first + self.size + self.every

    def repeats(self) -> int:
        return self.every
