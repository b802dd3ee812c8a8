"""`everything()`: all committed frames."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op


@policy_op("everything")
@dataclass(frozen=True)
class Everything(Op):
    """All committed frames. A policy that uses it needs a `horizon`."""

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return FrameSet.interval(0, chunk.start)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return set(range(chunk.start))

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return s

    def settles(self) -> int:
        return 0
