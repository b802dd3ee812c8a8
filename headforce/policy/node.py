"""The expression of a rule: operators joined by union and intersection, and the sets of frames they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import HeadforceError
from .chunk import Chunk
from .frameset import EMPTY, FrameSet
from .op import Op, is_name
from .parts import Part
from .positions import KEEP, PositionMap

Held = Mapping[str, FrameSet]
"""What the stateful operators of one head hold, by store name."""

NOTHING_HELD: Held = {}

FORGOTTEN = ""
"""The key in `Held` under which are the frames that a prompt switch made the head forget. No store has that name."""


@dataclass(frozen=True)
class Term:
    """One operator with its position map. `label` names its store for `evicted(label)`."""

    op: Op
    map: PositionMap = KEEP
    label: str = ""

    def __post_init__(self) -> None:
        if self.label and not is_name(self.label):
            raise HeadforceError(
                "HF-RULE-FORM", found=f"{self.op} as {self.label!r}", needed="a name of letters, digits and underscores"
            )

    @property
    def store(self) -> str:
        """The name under which other operators refer to this one."""
        return self.label or self.op.name

    def __str__(self) -> str:
        at = "" if self.map == KEEP else f"@{self.map}"
        return f"{self.op}{at}" + (f" as {self.label}" if self.label else "")


@dataclass(frozen=True)
class Union:
    """`a | b`: frames of either; the leftmost part that holds a frame gives its position."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


@dataclass(frozen=True)
class Intersection:
    """`a & b`: frames of both, at the position that the first part gives."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, Union) else str(part) for part in self.parts)


Node = Term | Union | Intersection


def terms_of(node: Node) -> Iterator[Term]:
    """The operators, from left to right."""
    if isinstance(node, Term):
        yield node
    else:
        for part in node.parts:
            yield from terms_of(part)


def frames_of(term: Term, chunk: Chunk, query: int, held: Held) -> FrameSet:
    """The whole frames that one operator gives a query frame; none where it gives parts."""
    if term.op.paged:
        return EMPTY
    return held.get(term.store, EMPTY) if term.op.stateful else term.op.frames(chunk, query) - _lost(held)


def live_of(term: Term, chunk: Chunk, held: Held) -> FrameSet:
    """The frames below chunk.start that one operator can still give, or still needs for its parts."""
    if term.op.stateful and not term.op.paged:
        return held.get(term.store, EMPTY)
    return term.op.live(chunk) - _lost(held)


def _lost(held: Held) -> FrameSet:
    return held.get(FORGOTTEN, EMPTY)


def fold(node: Node, leaf: Callable[[Term], FrameSet]) -> FrameSet:
    """The set of the whole expression, from the set of every operator."""
    if isinstance(node, Term):
        return leaf(node)
    sets = [fold(part, leaf) for part in node.parts]
    result = sets[0]
    for frames in sets[1:]:
        result = result | frames if isinstance(node, Union) else result & frames
    return result


def pieces_of(node: Node, chunk: Chunk, query: int, held: Held) -> Iterator[tuple[Term, FrameSet]]:
    """The frames of each term that gives them their position, in the order written; disjoint."""
    if isinstance(node, Term):
        yield node, frames_of(node, chunk, query, held)
    elif isinstance(node, Union):
        seen = EMPTY
        for part in node.parts:
            for term, frames in pieces_of(part, chunk, query, held):
                yield term, frames - seen
                seen |= frames
    else:
        others = [fold(part, lambda term: frames_of(term, chunk, query, held)) for part in node.parts[1:]]
        for term, frames in pieces_of(node.parts[0], chunk, query, held):
            for other in others:
                frames &= other
            yield term, frames


def parts_of(node: Node, chunk: Chunk, query: int, held: Held) -> Iterator[tuple[Term, Part]]:
    """The parts that stores with pages of their own give a query frame.

    An intersection gives the parts of its first operand whose frames all the others hold.
    """
    if isinstance(node, Term):
        if node.op.paged:
            yield from ((node, part) for part in node.op.parts(held.get(node.store, EMPTY)))
    elif isinstance(node, Union):
        for operand in node.parts:
            yield from parts_of(operand, chunk, query, held)
    else:
        others = [fold(operand, lambda term: frames_of(term, chunk, query, held)) for operand in node.parts[1:]]
        for term, part in parts_of(node.parts[0], chunk, query, held):
            if all(frame in other for other in others for frame in part.frames):
                yield term, part
