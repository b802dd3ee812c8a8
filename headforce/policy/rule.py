"""Rules: operators joined by union and intersection, with a position for every frame.

A rule says what one head reads besides the current chunk. On frame sets the usual laws hold. Positions make order
matter: the leftmost operand that holds a frame gives its position, and `a & b` keeps a's. Two rules are equal when
these laws make them the same, whatever the order in which they were written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import HeadforceError
from .chunk import Chunk
from .form import check_form
from .frameset import EMPTY, FrameSet
from .item import Item, PartItem
from .node import (
    NOTHING_HELD,
    Held,
    Intersection,
    Node,
    Term,
    Union,
    fold,
    frames_of,
    live_of,
    parts_of,
    pieces_of,
    terms_of,
)
from .op import SCOPES, Composable, Op
from .parts import Part
from .positions import CONTIGUOUS, KEEP, PositionMap, contiguous_position

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, eq=False)
class Rule(Composable):
    """What one head remembers. `str(rule)` is its text; `parse_rule` reads it back.

    Rules compare and hash by meaning: `a | b == b | a` when both keep positions.
    """

    node: Node
    contiguous: bool = False

    def __post_init__(self) -> None:
        if self.contiguous and any(term.map != KEEP for term in self.terms):
            raise HeadforceError(
                "HF-RULE-FORM",
                found=f"{self.node} with @contiguous and another position map",
                needed="one or the other: contiguous gives every frame of the rule its position",
            )

    # --- building -----------------------------------------------------------------------------------------------

    def as_rule(self) -> Rule:
        return self

    def union(self, other: Rule) -> Rule:
        return Rule(Union((*self._open().parts_of(Union), *other._open().parts_of(Union))))

    def intersection(self, other: Rule) -> Rule:
        return Rule(Intersection((*self._open().parts_of(Intersection), *other._open().parts_of(Intersection))))

    def mapped(self, position_map: PositionMap | str) -> Rule:
        """The rule with a position map: `contiguous` for the whole rule, any other for a single operator."""
        if position_map == CONTIGUOUS:
            return replace(self._open(), contiguous=True)
        if not isinstance(position_map, PositionMap):
            raise HeadforceError(
                "HF-RULE-FORM",
                found=f"{position_map!r} for a position map",
                needed="one such as Collapse(21), or the whole rule in words: parse_rule('sink(1)@collapse(21)')",
            )
        if not (isinstance(self.node, Term) and self.node.map == KEEP and not self.contiguous):
            raise HeadforceError(
                "HF-RULE-FORM",
                found=f"@{position_map} on {self}",
                needed="one map on one operator, such as sink(1)@collapse(21), or @contiguous on a whole rule",
            )
        return Rule(replace(self.terms[0], map=position_map))

    def _open(self) -> Rule:
        if self.contiguous:
            raise HeadforceError(
                "HF-RULE-FORM", found=f"{self} inside a larger rule", needed="@contiguous on the whole rule only"
            )
        return self

    def parts_of(self, kind: type[Union] | type[Intersection]) -> tuple[Node, ...]:
        return self.node.parts if isinstance(self.node, kind) else (self.node,)

    def replaced(self, change: Callable[[Op], Op]) -> Rule:
        """The rule with every operator passed through `change`."""

        def walk(node: Node) -> Node:
            if isinstance(node, Term):
                return replace(node, op=change(node.op))
            return type(node)(tuple(map(walk, node.parts)))

        return Rule(walk(self.node), self.contiguous)

    def checked(self) -> Rule:
        """The rule itself, once it is known to be whole: HF-RULE-FORM if stores lack a name or a source, or if an
        operator stands where it has no meaning."""
        check_form(self)
        return self

    # --- facts --------------------------------------------------------------------------------------------------

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The operators, from left to right."""
        return tuple(terms_of(self.node))

    @cached_property
    def stateful(self) -> tuple[Term, ...]:
        """The terms whose frames depend on recorded decisions."""
        return tuple(term for term in self.terms if term.op.stateful)

    @cached_property
    def feeders(self) -> tuple[Term, ...]:
        """The terms whose evicted frames are candidates for a store. Their frames are held even if none is read."""
        names = {term.op.feeds_from for term in self.stateful}
        return tuple(term for term in self.terms if term.store in names)

    @cached_property
    def paged(self) -> tuple[Term, ...]:
        """The terms that keep parts of frames in pages of their own."""
        return tuple(term for term in self.terms if term.op.paged)

    @cached_property
    def pages(self) -> int:
        """Pages that stores need for parts, besides those of the frames that are held."""
        return sum(term.op.pages for term in self.paged)

    @cached_property
    def scope(self) -> str:
        """Among which heads all stores of the rule are one and the same, see `SCOPES`."""
        return min((term.op.scope for term in self.stateful), key=SCOPES.index, default="every")

    @property
    def reads_chunk(self) -> bool:
        """False for heads that read nothing, whose output is zero."""
        return all(term.op.reads_chunk for term in self.terms)

    @property
    def index_only(self) -> bool:
        """True when frames keep their own positions and no operator has state."""
        return not self.stateful and not self.moves

    @cached_property
    def moves(self) -> bool:
        """True when some frame may be read at another position than its own."""
        return self.contiguous or any(term.map != KEEP for term in self.terms)

    @cached_property
    def by_query(self) -> bool:
        """True when query frames of one chunk can read different frames, or the same at different positions."""
        return any(term.op.by_query or (term.map.by_query and not self.contiguous) for term in self.terms)

    def settles(self) -> int:
        """See `Op.settles`. A sum: a window has to move clear of a sink before their union stops growing."""
        return sum(term.op.settles() for term in self.terms)

    def repeats(self) -> int:
        """See `Op.repeats`."""
        return math.lcm(*(term.op.repeats() for term in self.terms))

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        """Most frames that must be held when s are committed and no chunk is longer than n, as a sympy expression."""
        from .symbolic import bound

        parts = self.parts_of(Union)
        # Stores and their sources are held whole, also where an intersection reads only a part of them.
        weighed = dict.fromkeys((*self.stateful, *self.feeders))
        return bound(Union((*parts, *(term for term in weighed if term not in parts))), s, n)

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, chunk: Chunk, query: int, held: Held = NOTHING_HELD) -> tuple[Item, ...]:
        """What query frame `query` of `chunk` reads besides the chunk, operator by operator, no frame twice."""
        pieces = [(term, frames) for term, frames in pieces_of(self.node, chunk, query, held) if frames]
        if not self.contiguous:
            return tuple(
                Item(term.op.name, tuple(frames), tuple(term.map.position(f, query) for f in frames))
                for term, frames in pieces
            )
        place = self._laid(chunk, query, held)
        return tuple(Item(term.op.name, tuple(frames), tuple(place[f] for f in frames)) for term, frames in pieces)

    def read_parts(self, chunk: Chunk, query: int, held: Held = NOTHING_HELD) -> tuple[PartItem, ...]:
        """The parts that query frame `query` reads besides whole frames, store by store.

        A part is left out where the rule reads one of its frames whole, or an operator before it the same part.
        """
        if not self.paged:
            return ()
        place = self._laid(chunk, query, held) if self.contiguous else {}
        items = []
        for term, parts in self._parts(chunk, query, held):
            positions = (place[p.at] if self.contiguous else term.map.position(p.at, query) for p in parts)
            items.append(PartItem(term.op.name, term.store, parts, tuple(positions)))
        return tuple(items)

    def _parts(self, chunk: Chunk, query: int, held: Held) -> list[tuple[Term, tuple[Part, ...]]]:
        whole, seen = self.frames(chunk, query, held), set()
        found: dict[Term, list[Part]] = {}
        for term, part in parts_of(self.node, chunk, query, held):
            if part.content not in seen and not any(frame in whole for frame in part.frames):
                found.setdefault(term, []).append(part)
                seen.add(part.content)
        return [(term, tuple(sorted(parts))) for term, parts in found.items()]

    def _laid(self, chunk: Chunk, query: int, held: Held) -> dict[int, int]:
        """The position of every frame, of those too at which parts stand, when they are laid without gaps."""
        everything = self.frames(chunk, query, held)
        for _, parts in self._parts(chunk, query, held) if self.paged else ():
            everything |= FrameSet.of(part.at for part in parts)
        return {f: contiguous_position(i, len(everything), chunk.start) for i, f in enumerate(everything)}

    def frames(self, chunk: Chunk, query: int, held: Held = NOTHING_HELD) -> FrameSet:
        """The frames that query frame `query` of `chunk` reads besides the chunk."""
        return fold(self.node, lambda term: frames_of(term, chunk, query, held))

    def live(self, chunk: Chunk, held: Held = NOTHING_HELD) -> FrameSet:
        """The frames below chunk.start that `chunk` or a later chunk can read, or that a later commit looks at.

        For an intersection with `phase="query"` this is a bound from above: each part is followed on its own.
        """
        return fold(self.node, lambda term: live_of(term, chunk, held)) | self.weighed(chunk, held)

    def weighed(self, chunk: Chunk, held: Held = NOTHING_HELD) -> FrameSet:
        """The frames below chunk.start that a commit compares: those of all stores, and what they may be offered."""
        frames = EMPTY
        for term in (*self.stateful, *self.feeders):
            frames |= live_of(term, chunk, held)
        return frames

    # --- equality -----------------------------------------------------------------------------------------------

    @cached_property
    def normal(self) -> Node:
        """The normal form: flat, without repetition, operands that may change places in a fixed order."""
        from .normal import normalise

        return normalise(self.node)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return self.contiguous == other.contiguous and self.normal == other.normal

    @cached_property
    def _hash(self) -> int:
        return hash((self.normal, self.contiguous))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        # Hashes of text differ from process to process: nothing that is cached may travel in a pickle.
        return Rule, (self.node, self.contiguous)

    @cached_property
    def digest(self) -> str:
        """A hash of the meaning that is the same in every process and on every machine (16 hex digits)."""
        text = f"({self.normal})@{CONTIGUOUS}" if self.contiguous else str(self.normal)
        text += "".join(f" {term.op.unwritten}" for term in terms_of(self.normal) if term.op.unwritten)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"({self.node})@{CONTIGUOUS}" if self.contiguous else str(self.node)

    def __repr__(self) -> str:
        return f"Rule({str(self)!r})"
