"""Operators with state: what they hold, and the record of how it came about.

A decision (is this unit novel? which one does it replace?) needs keys, so it is made where the tensors are. Everything
else - plans, the oracle, reports - replays the record, and is therefore exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from ..errors import HeadforceError
from .chunk import Chunk
from .frameset import EMPTY, FrameSet
from .node import fold, live_of
from .op import Op

if TYPE_CHECKING:
    from .node import Term
    from .rule import Rule


@dataclass(frozen=True)
class Write:
    """One unit written at a commit, and the unit it replaced (empty if there was room)."""

    unit: FrameSet
    replaced: FrameSet = EMPTY


@dataclass(frozen=True)
class Commit:
    """What stores have to know of a commit.

    Attributes:
        ruling: false as long as the chunk before was one of the warm-up, under which another rule was in force.
        lost: frames that a prompt switch made the head forget.
        often: units that were chosen as often as the store allows.
    """

    ruling: bool = True
    lost: FrameSet = EMPTY
    often: FrameSet = EMPTY


class StoreOp(Op):
    """Base of operators with state: a store of `slots` units that changes only at commit.

    A subclass cuts what arrives into candidate `units`, and says through `evict` which unit a full store replaces:
    its oldest (`fifo`) or the one that the decision names.
    """

    slots: int
    evict: str
    stateful: ClassVar[bool] = True
    scope: str = "head"
    reuse: int | None = None
    """How often one unit may be written; None for as often as it is chosen."""

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        """The candidates for writing among the frames that arrived, oldest first."""
        raise NotImplementedError

    def offered(
        self, store: str, held: tuple[FrameSet, ...], arrived: FrameSet, decide: Decide, when: Commit
    ) -> tuple[Write, ...]:
        """What is written when these frames arrive."""
        writes: list[Write] = []
        for unit in self.units(arrived - _union(held)):
            novel, least_novel = decide.novel(store, held, unit)
            if novel:
                full = len(held) == self.slots
                writes.append(Write(unit, (held[0] if self.evict == "fifo" else least_novel) if full else EMPTY))
                held = self.after(held, (writes[-1],))
        return tuple(writes)

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


class PagedStore(StoreOp):
    """Base of stores that keep parts of frames, in `pages` pages of their own.

    Units are sets of whole numbers, which `parts` says the meaning of. `live` are the committed frames of which parts
    may yet be made. A subclass defines `pages`, `most_parts`, `parts`, `materialize_part` and `before`, and `sources`
    if its parts change in place.
    """

    paged: ClassVar[bool] = True

    def need_division(self, tokens: int, pieces: int) -> None:
        """HF-SEGMENTS unless a frame of `tokens` tokens can be cut into `pieces` equal pieces."""
        if tokens % pieces:
            raise HeadforceError(
                "HF-SEGMENTS",
                found=f"{self}, which cuts {tokens} tokens of a frame into {pieces}",
                needed=f"a divisor of {tokens}",
            )

    def before(self, held: FrameSet, frame: int) -> FrameSet:
        """What of `held` was made of frames before `frame` alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class Decide:
    """Decisions that need keys.

    Attributes:
        novel: (store, units held, candidate) -> is it written, and which unit does `least_novel` give up when the
            store is full?
        choose: (store, candidates, count) -> the `count` candidates that a selection keeps.
    """

    novel: Callable[[str, tuple[FrameSet, ...], FrameSet], tuple[bool, FrameSet]]
    choose: Callable[[str, FrameSet, int], FrameSet]


Record = dict[tuple[str, int], tuple[Write, ...]]
"""Writes of one head by (store, frames committed after the commit)."""


def _always_novel(store: str, held: tuple[FrameSet, ...], candidate: FrameSet) -> tuple[bool, FrameSet]:
    return True, held[0] if held else EMPTY


def _newest(store: str, candidates: FrameSet, count: int) -> FrameSet:
    return candidates.newest(count)


BUSIEST = Decide(_always_novel, _newest)
"""Writes every candidate over the oldest unit, the busiest a store can be, and selects the newest. For plans made
without a model."""


@dataclass
class HeadMemory:
    """The stores of one head of one stream. Changes only in `commit`, and can be rebuilt from `record`."""

    rule: Rule
    stores: dict[str, tuple[FrameSet, ...]] = field(default_factory=dict)
    record: Record = field(default_factory=dict)
    committed: int = 0
    """Frames that were history when the stores were as they are; the record may go on behind."""
    amended: bool = False
    """True for the memory of a rewrite, whose stores are not what the record says of that time."""

    @property
    def held(self) -> dict[str, FrameSet]:
        """The frames held by each store."""
        return {name: _union(units) for name, units in self.stores.items()}

    def commit(self, before: Chunk, after: Chunk, decide: Decide, when: Commit | None = None) -> None:
        """Makes frames before.start..after.start-1 history and offers the candidates among them to every store."""
        when = when or Commit()
        gone: dict[str, FrameSet] = {}
        pending = list(self.rule.stateful)
        while pending:
            # A store that is fed by another one waits for it; `Rule.checked` has excluded circles.
            term = next(t for t in pending if all(t.op.feeds_from != other.store for other in pending))
            arrived = self._arrived(term, before, after, gone) - when.lost
            if term.op.paged and term.op.feeds_from:
                arrived -= self._whole(after)
            gone[term.store] = self._offer(term, arrived, after.start, decide, when)
            pending.remove(term)
        self.committed = after.start

    def at(self, committed: int) -> HeadMemory:
        """The same memory, its stores as they were when `committed` frames were history. It shares nothing with this.

        A pass may begin between two commits: that nothing was decided there becomes part of the new memory's record.
        """
        onward = self.committed <= committed and not self.amended
        stores, since = (dict(self.stores), self.committed) if onward else ({}, 0)
        if since < committed:
            for (store, when), writes in sorted(self.record.items(), key=lambda entry: entry[0][1]):
                if since < when <= committed:
                    stores[store] = self._op(store).after(stores.get(store, ()), writes)
        empty: Record = {(term.store, committed): () for term in self.rule.stateful} if committed else {}
        return HeadMemory(self.rule, stores, {**empty, **self.record}, committed)

    def rewriting(self, frame: int) -> HeadMemory:
        """The memory of a pass that makes frames from `frame` on anew: parts made of frames before it stay, as they
        are; of stores of whole frames the pass reads what they held then."""
        then = self.at(frame)
        then.amended = bool(self.rule.paged)
        for term in self.rule.paged:
            op = self._op(term.store)
            assert isinstance(op, PagedStore)
            left = op.before(_union(self.stores.get(term.store, ())), frame)
            then.stores[term.store] = (left,) if left else ()
        return then

    def explained(self) -> Record:
        """The record of how the stores came to be as they are, for whoever replays it up to `committed`."""
        paged = {term.store for term in self.rule.paged}
        record = {key: writes for key, writes in self.record.items() if key[0] not in paged}
        for store in paged if self.committed else ():
            record[store, self.committed] = tuple(Write(unit) for unit in self.stores.get(store, ()))
        return record

    def empty(self) -> None:
        """Forgets all that the stores hold, and how it came there."""
        self.stores = {}
        self.record = {(term.store, self.committed): () for term in self.rule.stateful}

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

    def _whole(self, after: Chunk) -> FrameSet:
        """The frames that the rule goes on reading as a whole, of which a part would be read twice."""
        return fold(self.rule.node, lambda term: EMPTY if term.op.paged else live_of(term, after, self.held))

    def _chosen(self, store: str, times: int) -> FrameSet:
        """What was written into a store at least so many times."""
        counts = [EMPTY] * times  # counts[i]: at least i + 1 times
        for (name, when), writes in self.record.items():
            if name != store or when > self.committed:
                continue
            for carried in (write.unit for write in writes):
                for i, seen in enumerate(counts):
                    counts[i], carried = seen | carried, seen & carried
        return counts[-1]

    def _offer(self, term: Term, arrived: FrameSet, committed: int, decide: Decide, when: Commit) -> FrameSet:
        """Offers what arrived to one store; the frames that the store lets go of."""
        op = self._op(term.store)
        held = self.stores.get(term.store, ())
        if op.reuse is not None:
            when = replace(when, often=self._chosen(term.store, op.reuse))
        writes = op.offered(term.store, held, arrived, decide, when)
        held = self.stores[term.store] = op.after(held, writes)
        self.record[term.store, committed] = writes
        return _union(tuple(write.replaced for write in writes)) - _union(held)


def _union(units: tuple[FrameSet, ...]) -> FrameSet:
    frames = EMPTY
    for unit in units:
        frames |= unit
    return frames
