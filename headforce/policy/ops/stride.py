"""`stride(period, phase, last)`: every period-th frame."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from ...errors import HeadforceError
from ..chunk import Chunk
from ..frameset import EMPTY, FrameSet
from ..op import Op, policy_op

QUERY = "query"


@policy_op("stride")
@dataclass(frozen=True)
class Stride(Op):
    """Frames f = phase (mod period), the newest `last` of them, or all if `last` is not given.

    `phase="query"` takes the phase of each query frame, so the frames of one chunk read different sets (Pyramid
    Forcing's cyclic heads, arXiv 2605.13111).
    """

    period: int
    phase: int | str = field(default=0, metadata={"words": (QUERY,), "always": True, "quoted": True})
    last: int | None = None

    def __post_init__(self) -> None:
        self.need_count("period")
        if self.last is not None:
            self.need_count("last")
        if self.phase != QUERY and (type(self.phase) is not int or not 0 <= self.phase < self.period):
            raise HeadforceError(
                "HF-OP-ARG",
                found=f"phase={self.phase!r} in stride({self.period})",
                needed=f'a whole number from 0 to {self.period - 1}, or "query"',
            )

    @property
    def by_query(self) -> bool:
        return self.phase == QUERY

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return self._newest(query if isinstance(self.phase, str) else self.phase, chunk.start)

    def _newest(self, phase: int, stop: int) -> FrameSet:
        frames = FrameSet.stride(phase, self.period, stop)
        return frames if self.last is None else frames.newest(self.last)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        phase = query if isinstance(self.phase, str) else self.phase
        of_phase = [f for f in range(chunk.start) if f % self.period == phase % self.period]
        return set(of_phase if self.last is None else of_phase[-self.last :])

    def live(self, chunk: Chunk) -> FrameSet:
        if isinstance(self.phase, int):
            return self._newest(self.phase, chunk.start)
        # Every phase comes round again, and until its next query no newer frame of that phase is committed.
        held = EMPTY
        for phase in range(min(self.period, chunk.start)):
            held |= self._newest(phase, chunk.start)
        return held

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        if isinstance(self.phase, str):
            return s if self.last is None else sympy.Min(s, self.period * self.last)
        seen = sympy.Max(0, sympy.ceiling((s - self.phase) / sympy.Integer(self.period)))
        return seen if self.last is None else sympy.Min(seen, self.last)

    def repeats(self) -> int:
        return self.period

    def settles(self) -> int:
        return self.period * ((self.last or 1) + 1)
