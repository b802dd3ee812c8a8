"""Lanes: heads whose regions look alike, the stores of each, and the parts that have to be made for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import HeadforceError
from ..policy import FrameSet, HeadMemory, HeadRule, Part
from ..policy.node import Term
from ..policy.parts import Content
from .plan import Cell
from .slots import SlotMap

EMPTY = FrameSet()


@dataclass
class Lane:
    """Heads whose regions always look alike: those of one rule, as far as its stores decide for all of them alike.

    Attributes:
        rule: of all these heads. slots: of the region of each. memory: what their stores hold, if there are any.
        first: one of the heads, whose plan is the plan of all.
        store_page: the first page of each store that keeps parts, counted from the start of the region.
        present: the units whose parts are in these pages.
    """

    rule: HeadRule
    slots: SlotMap
    first: Cell
    memory: HeadMemory | None = None
    store_page: dict[str, int] = field(default_factory=dict)
    present: dict[str, FrameSet] = field(default_factory=dict)

    @staticmethod
    def of(rule: HeadRule, first: Cell) -> Lane:
        """A lane that holds nothing yet."""
        lane = Lane(rule, SlotMap(0, rule.pages), first, HeadMemory(rule.rule) if rule.rule.stateful else None)
        page = 0
        for term in rule.rule.paged:
            lane.store_page[term.store] = page
            page += term.op.pages
        return lane

    @property
    def held(self) -> dict[str, FrameSet]:
        """What the stores of the lane hold."""
        return self.memory.held if self.memory else {}

    def where(self) -> dict[Content, int]:
        """What a part is made of -> where it lies, counted in such parts from the start of the region."""
        return {
            part.content: self.store_page[term.store] * part.of + part.place
            for term in self.rule.rule.paged
            for part in term.op.parts(self.present.get(term.store, EMPTY))
        }


@dataclass(frozen=True)
class Making:
    """Parts that have to be made before the next pass: those of one store of a lane.

    Attributes:
        lane: its number. term: the store.
        parts: what is made, and where it goes.
        page: frame -> page of the region in which it lies now. old: the parts that the store held before.
        done: how many of the lane's heads have them.
    """

    lane: int
    term: Term
    parts: tuple[Part, ...]
    page: Mapping[int, int]
    old: tuple[Part, ...]
    done: int = 0

    @property
    def new(self) -> list[Part]:
        """The parts that the store does not have yet, in another place either."""
        had = {part.content for part in self.old}
        return [part for part in self.parts if part.content not in had]

    @property
    def sources(self) -> FrameSet:
        """The frames out of which the new ones are made."""
        return FrameSet.of(frame for part in self.new for frame in self.term.op.sources(part, self.old))


def units_of(lane: Lane, memory: HeadMemory | None) -> dict[str, FrameSet]:
    """The units whose parts are to be in the pages of a lane's stores."""
    held = memory.held if memory else {}
    return {term.store: held.get(term.store, EMPTY) for term in lane.rule.rule.paged}


def check_makeable(lane: Lane, units: Mapping[str, FrameSet], what: str) -> None:
    """HF-FORGOTTEN if a store needs parts of frames that have no page any more."""
    for making in makings(0, lane, units):
        needed = making.sources
        if any(frame not in making.page for frame in needed):
            raise HeadforceError(
                "HF-FORGOTTEN",
                found=f"{what}, for which {making.term} needs parts of frames {needed}",
                needed=f"frames that are still held: {lane.slots.held}",
            )


def makings(number: int, lane: Lane, units: Mapping[str, FrameSet]) -> Iterator[Making]:
    """The parts of a lane that are not where they have to be when the coming pass begins."""
    for term in lane.rule.rule.paged:
        wanted, present = units[term.store], lane.present.get(term.store, EMPTY)
        if wanted == present:
            continue
        old: tuple[Part, ...] = term.op.parts(present)
        there = set(old)
        parts = tuple(part for part in term.op.parts(wanted) if part not in there)
        if parts:
            yield Making(number, term, parts, dict(lane.slots.slot), old)
