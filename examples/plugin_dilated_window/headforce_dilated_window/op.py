"""`dilated_window(size, step)`: a window with gaps."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from headforce.policy import Chunk, FrameSet, Op, policy_op


@policy_op("dilated_window")
@dataclass(frozen=True)
class DilatedWindow(Op):
    """The newest committed frame, and every `step`-th frame before it, `size` frames in all.

    >>> str(DilatedWindow(3, step=4).frames(Chunk(3, 9, 3), 9))
    '0, 4, 8'
    """

    size: int
    step: int = 2

    def __post_init__(self) -> None:
        self.need_count("size", "step")

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        newest = chunk.start - 1
        return FrameSet.stride(newest % self.step, self.step, chunk.start).newest(self.size)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        wanted = {chunk.start - 1 - self.step * i for i in range(self.size)}
        return {f for f in range(chunk.start) if f in wanted}

    def live(self, chunk: Chunk) -> FrameSet:
        # The next chunk may begin at any frame, so any frame within reach may be wanted then.
        return FrameSet.interval(chunk.start - self.reach, chunk.start)

    @property
    def reach(self) -> int:
        """How far back the oldest frame lies."""
        return self.step * (self.size - 1) + 1

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.reach)

    def settles(self) -> int:
        return self.reach
