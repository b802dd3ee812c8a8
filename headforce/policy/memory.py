"""Operators with state: what they hold, and the record of how it came about.

A decision (is this unit novel? which one does it replace?) needs keys, so it is made where the tensors are. Everything
else - plans, the oracle, reports - replays the record, and is therefore exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ..errors import HeadforceError
from .chunk import Chunk
from .frameset import EMPTY, FrameSet
from .op import Op

if TYPE_CHECKING:
    from .node import Term
    from .rule import Rule


@dataclass(frozen=True)
class Write:
    """One unit written at a commit, and the unit it replaced (empty if there was room)."""

    unit: FrameSet
    replaced: FrameSet = EMPTY


class StoreOp(Op):
    """Base of operators with state: a store of `slots` units that changes only at commit.

    A subclass cuts what arrives into candidate `units`, and says through `evict` which unit a full store replaces:
    its oldest (`fifo`) or the one that the decision names.
    """

    slots: int
    evict: str
    stateful: ClassVar[bool] = True

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        """The candidates for writing among the frames that arrived, oldest first."""
        raise NotImplementedError

    def after(self, held: tuple[FrameSet, ...], writes: tuple[Write, ...]) -> tuple[FrameSet, ...]:
        """The units held, in the order written, after the recorded `writes`; HF-DECISION if they cannot be."""
        for write in writes:
            units = tuple(unit for unit in held if unit != write.replaced)
            if (write.replaced and len(units) == len(held)) or len(units) >= self.slots:
                raise HeadforceError(
                    "HF-DECISION",
                    found=f"a record that writes frames {write.unit} and replaces {write.replaced} "
                    f"where {len(held)} of {self.slots} slots are used",
                    needed="a record that replaces a unit that is held, and only when the store is full",
                )
            held = (*units, write.unit)
        return held

    def settles(self) -> int:
        return 0


Decide = Callable[[str, tuple[FrameSet, ...], FrameSet], "tuple[bool, FrameSet]"]
"""(store, units held, candidate) -> (is it written?, which unit `least_novel` gives up when the store is full)."""

Record = dict[tuple[str, int], tuple[Write, ...]]
"""Writes of one head by (store, frames committed after the commit)."""


def always_novel(store: str, held: tuple[FrameSet, ...], candidate: FrameSet) -> tuple[bool, FrameSet]:
    """Writes every candidate over the oldest unit: the busiest a store can be. For plans made without a model."""
    return True, held[0] if held else EMPTY


@dataclass
class HeadMemory:
    """The stores of one head of one stream. Changes only in `commit`, and can be rebuilt from `record`."""

    rule: Rule
    stores: dict[str, tuple[FrameSet, ...]] = field(default_factory=dict)
    record: Record = field(default_factory=dict)
    committed: int = 0
    """Frames that were history when the stores were as they are; the record may go on behind."""

    @property
    def held(self) -> dict[str, FrameSet]:
        """The frames held by each store."""
        return {name: _union(units) for name, units in self.stores.items()}

    def commit(self, before: Chunk, after: Chunk, decide: Decide) -> None:
        """Makes frames before.start..after.start-1 history and offers the candidates among them to every store."""
        gone: dict[str, FrameSet] = {}
        pending = list(self.rule.stateful)
        while pending:
            # A store that is fed by another one waits for it; `Rule.checked` has excluded circles.
            term = next(t for t in pending if all(t.op.feeds_from != other.store for other in pending))
            gone[term.store] = self._offer(term, self._arrived(term, before, after, gone), after.start, decide)
            pending.remove(term)
        self.committed = after.start

    def at(self, committed: int) -> HeadMemory:
        """The same memory, its stores as they were when `committed` frames were history. It shares nothing with this.

        A pass may begin between two commits: that nothing was decided there becomes part of the new memory's record.
        """
        onward = self.committed <= committed
        stores, since = (dict(self.stores), self.committed) if onward else ({}, 0)
        if since < committed:
            for (store, when), writes in sorted(self.record.items(), key=lambda entry: entry[0][1]):
                if since < when <= committed:
                    stores[store] = self._op(store).after(stores.get(store, ()), writes)
        empty: Record = {(term.store, committed): () for term in self.rule.stateful} if committed else {}
        return HeadMemory(self.rule, stores, {**empty, **self.record}, committed)

    def forget_after(self, committed: int) -> None:
        """Drops what was decided when more than `committed` frames were history: those frames are gone."""
        self.record = {key: writes for key, writes in self.record.items() if key[1] <= committed}

    def _op(self, store: str) -> StoreOp:
        op = next(term.op for term in self.rule.stateful if term.store == store)
        assert isinstance(op, StoreOp)
        return op

    def _arrived(self, term: Term, before: Chunk, after: Chunk, gone: dict[str, FrameSet]) -> FrameSet:
        new = FrameSet.interval(before.start, after.start)
        if not term.op.feeds_from:
            return new
        feeder = next(other for other in self.rule.terms if other.store == term.op.feeds_from)
        if feeder.op.stateful:
            return gone[feeder.store]
        # A frame that passes a window by in a single commit has been let go of by it too.
        return (feeder.op.live(before) | new) - feeder.op.live(after)

    def _offer(self, term: Term, arrived: FrameSet, committed: int, decide: Decide) -> FrameSet:
        """Offers what arrived to one store; the frames that the store lets go of."""
        op = term.op
        assert isinstance(op, StoreOp)
        held = self.stores.get(term.store, ())
        writes: list[Write] = []
        for unit in op.units(arrived - _union(held)):
            novel, least_novel = decide(term.store, held, unit)
            if novel:
                full = len(held) == op.slots
                writes.append(Write(unit, (held[0] if op.evict == "fifo" else least_novel) if full else EMPTY))
                held = op.after(held, (writes[-1],))
        self.stores[term.store] = held
        self.record[term.store, committed] = tuple(writes)
        return _union(tuple(write.replaced for write in writes)) - _union(held)


def _union(units: tuple[FrameSet, ...]) -> FrameSet:
    frames = EMPTY
    for unit in units:
        frames |= unit
    return frames
