"""`drop()`: nothing but the current chunk."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..chunk import Chunk
from ..frameset import EMPTY, FrameSet
from ..op import Op, policy_op


@policy_op("drop")
@dataclass(frozen=True)
class Drop(Op):
    """No committed frame at all (Dummy Forcing's dummy heads, arXiv 2601.20499)."""

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return EMPTY

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return set()

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Integer(0)

    def settles(self) -> int:
        return 0
