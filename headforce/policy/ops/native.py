"""`native()`: what the unmodified model would read."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from ...errors import HeadforceError
from ..chunk import Chunk
from ..frameset import FrameSet
from ..op import Op, policy_op
from ..rule import Rule


@policy_op("native")
@dataclass(frozen=True)
class Native(Op):
    """What the unmodified model reads, from its recognised window and sink: the identity of the whole system.

    `reads` is filled in when a policy meets a model; before that, asking for frames is HF-NATIVE.
    """

    reads: Rule | None = field(default=None, metadata={"hidden": True})

    def __post_init__(self) -> None:
        if self.reads is None:
            return
        if not self.reads.index_only or any(isinstance(term.op, Native) for term in self.reads.terms):
            raise HeadforceError(
                "HF-OP-ARG",
                found=f"native rule {self.reads}",
                needed="operators other than native(), without position maps and without state",
            )

    @property
    def rule(self) -> Rule:
        if self.reads is None:
            raise HeadforceError("HF-NATIVE", found="native() before a model was seen", needed="the model's own rule")
        return self.reads

    @property
    def by_query(self) -> bool:
        return self.reads is not None and self.reads.by_query

    @property
    def unwritten(self) -> str:  # type: ignore[override]
        return "" if self.reads is None else self.reads.digest

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        return self.rule.frames(chunk, query)

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        # The plain definition goes through the plain interpreter, so that nothing fast stands behind it.
        from ..oracle import interpret

        return set(interpret(self.rule, chunk, query))

    def live(self, chunk: Chunk) -> FrameSet:
        return self.rule.live(chunk)

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return self.rule.bound(s, n)

    def settles(self) -> int:
        return self.rule.settles()

    def repeats(self) -> int:
        return self.rule.repeats()


UNMODIFIED = Native().as_rule()
"""`native()`: the rule of heads that nothing else is said of."""
