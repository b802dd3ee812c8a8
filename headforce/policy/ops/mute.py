"""`mute()`: no attention at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sympy

from ..chunk import Chunk
from ..frameset import EMPTY, FrameSet
from ..op import Op, policy_op


@policy_op("mute")
@dataclass(frozen=True)
class Mute(Op):
    """The head reads nothing, its own chunk neither: its output is zero (heads that are to be ablated)."""

    reads_chunk: ClassVar[bool] = False

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return EMPTY

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        return set()

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.S.Zero

    def settles(self) -> int:
        return 0
