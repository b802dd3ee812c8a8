"""`episodic(slots, unit, source, write, evict)`: a store of memorable frames, changed only at commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import sympy

from ...errors import HeadforceError
from ..frameset import FrameSet
from ..memory import StoreOp
from ..op import is_name, policy_op


@dataclass(frozen=True)
class Novel:
    """`novel(threshold)`: a unit is written if its largest cosine similarity to a held unit is below `threshold`."""

    threshold: float

    def __post_init__(self) -> None:
        if type(self.threshold) not in (int, float) or not -1 <= self.threshold <= 1:
            raise HeadforceError("HF-OP-ARG", found=f"novel({self.threshold!r})", needed="a threshold from -1 to 1")
        object.__setattr__(self, "threshold", self.threshold + 0.0)  # 1 and 1.0, and both zeros, have one spelling

    def __str__(self) -> str:
        return f"novel({self.threshold})"


@dataclass(frozen=True)
class Evicted:
    """`evicted(NAME)`: units come from what the store or window NAME lets go of."""

    store: str

    def __post_init__(self) -> None:
        if not is_name(self.store):
            raise HeadforceError("HF-OP-ARG", found=f"evicted({self.store!r})", needed="the name of an operator")

    def __str__(self) -> str:
        return f"evicted({self.store})"


@policy_op("episodic")
@dataclass(frozen=True)
class Episodic(StoreOp):
    """A store of `slots` units, kept for as long as nothing replaces them (Head Forcing's memory heads, 2605.14487).

    At each commit every candidate unit - a frame, or the frames of one chunk - is written if it is novel. Candidates
    are the committed chunk, or with `source=evicted(NAME)` what another operator lets go of. A full store replaces its
    oldest unit (`fifo`) or the one most like the others (`least_novel`). Which units were written and replaced is
    decided from keys and recorded; the record is what is replayed everywhere else.
    """

    slots: int
    unit: str = field(default="frame", metadata={"words": ("frame", "chunk")})
    source: str | Evicted = field(default="chunk", metadata={"words": ("chunk",)})
    write: Novel = Novel(0.9)
    evict: str = field(default="fifo", metadata={"words": ("fifo", "least_novel")})

    nested: ClassVar[dict[str, type]] = {"novel": Novel, "evicted": Evicted}

    def __post_init__(self) -> None:
        self.need_count("slots")
        self.need_word("unit", "evict")
        if not isinstance(self.source, Evicted):
            self.need_word("source", besides=" or evicted(NAME)")
        if not isinstance(self.write, Novel):
            raise HeadforceError("HF-OP-ARG", found=f"write={self.write!r}", needed="write=novel(threshold)")

    @property
    def feeds_from(self) -> str:  # type: ignore[override]
        return self.source.store if isinstance(self.source, Evicted) else ""

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        if self.unit == "frame":
            return tuple(FrameSet.of([f]) for f in arrived)
        return (arrived,) if arrived else ()

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.Min(s, self.slots * (n if self.unit == "chunk" else 1))
