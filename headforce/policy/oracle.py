"""The oracle: a brute-force interpreter of policies, and the definition of what is right.

Nothing here is fast or clever, and nothing here is shared with the code it judges: plain sets and dictionaries, the
`materialize` of every operator, one query frame at a time. Plans must agree with it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import HeadforceError
from .chunk import Chunk
from .frameset import FrameSet
from .node import FORGOTTEN, Intersection, Node, Term, Union
from .rule import Rule

if TYPE_CHECKING:
    from .memory import Record
    from .parts import Part
    from .policy import Warmup
    from .switch import Amended


Stores = dict[str, set[int]]
"""What each stateful operator of a head holds."""

Key = tuple[str, tuple[int, ...], int, int]
"""A part that is read: (store, the frames it was made of, which segment of a frame, of how many)."""


def interpret(rule: Rule, chunk: Chunk, query: int, stores: Stores | None = None) -> dict[int, int]:
    """The whole frames that `query` reads besides its chunk: frame -> position."""
    positions = _interpret(rule.node, chunk, query, stores or {})
    place = _laid(rule, chunk, query, stores or {})
    return {frame: place[frame] for frame in positions} if rule.contiguous else positions


def interpret_parts(rule: Rule, chunk: Chunk, query: int, stores: Stores) -> dict[Key, int]:
    """The parts of frames that `query` reads: what they are -> position."""
    place = _laid(rule, chunk, query, stores)
    return {
        (term.store, part.frames, part.index, part.of): place[part.at]
        if rule.contiguous
        else term.map.position(part.at, query)
        for term, part in _parts(rule, chunk, query, stores)
    }


def _laid(rule: Rule, chunk: Chunk, query: int, stores: Stores) -> dict[int, int]:
    """The positions of everything read, laid in order in front of the chunk."""
    kept = {*_interpret(rule.node, chunk, query, stores), *(p.at for _, p in _parts(rule, chunk, query, stores))}
    return {frame: chunk.start - len(kept) + i for i, frame in enumerate(sorted(kept))}


def _parts(rule: Rule, chunk: Chunk, query: int, stores: Stores) -> list[tuple[Term, Part]]:
    """No part of a frame that is read whole, none that an operator behind `&` lacks, and none twice."""
    whole = set(_interpret(rule.node, chunk, query, stores))
    found: list[tuple[Term, Part]] = []
    for term, filters in _paged(rule.node):
        allowed = [set(_interpret(node, chunk, query, stores)) for node in filters]
        for part in term.op.parts(FrameSet.of(stores.get(term.store, set()))):
            frames = set(part.frames)
            twice = any(part.content == other.content for _, other in found)
            if not twice and not frames & whole and all(frames <= those for those in allowed):
                found.append((term, part))
    return found


def _paged(node: Node, filters: tuple[Node, ...] = ()) -> list[tuple[Term, tuple[Node, ...]]]:
    """The terms that give parts, from left to right, and what stands behind `&` after each."""
    if isinstance(node, Term):
        return [(node, filters)] if node.op.paged else []
    if isinstance(node, Union):
        return [found for part in node.parts for found in _paged(part, filters)]
    return _paged(node.parts[0], (*filters, *node.parts[1:]))


def _interpret(node: Node, chunk: Chunk, query: int, stores: dict[str, set[int]]) -> dict[int, int]:
    if isinstance(node, Term):
        if node.op.paged:
            return {}
        if node.op.stateful:
            frames = stores.get(node.store, set())
        else:
            frames = node.op.materialize(chunk, query) - stores.get(FORGOTTEN, set())
        return {frame: node.map.position(frame, query) for frame in frames}
    parts = [_interpret(part, chunk, query, stores) for part in node.parts]
    if isinstance(node, Union):
        result: dict[int, int] = {}
        for part in parts:
            for frame, position in part.items():
                result.setdefault(frame, position)
        return result
    assert isinstance(node, Intersection)
    return {frame: position for frame, position in parts[0].items() if all(frame in part for part in parts[1:])}


def replay(rule: Rule, record: Record, committed: int) -> Stores:
    """What each store holds once `committed` frames are history, from the record alone."""
    stores: Stores = {}
    for term in rule.stateful:
        held: set[int] = set()
        for (store, when), writes in sorted(record.items(), key=lambda entry: entry[0][1]):
            if store == term.store and when <= committed:
                for write in writes:
                    held = (held - set(write.replaced)) | set(write.unit)
        if committed and not any(store == term.store and when == committed for store, when in record):
            raise HeadforceError(
                "HF-DECISION",
                found=f"no record of the commit that made {committed} frames history in {term.store!r}",
                needed="one entry for every commit",
            )
        stores[term.store] = held
    return stores


def rule_of(rule: Rule, warmup: Warmup | None, chunk: Chunk) -> Rule:
    """The rule in force for a chunk."""
    return warmup.rule if warmup is not None and chunk.index < warmup.chunks else rule


def read(
    rule: Rule,
    warmup: Warmup | None,
    chunk: Chunk,
    query: int,
    record: Record | None = None,
    amended: Amended | None = None,
) -> dict[int, int]:
    """The whole frames that query frame `query` of a head with `rule` reads besides its chunk: frame -> position.

    `amended` is what prompt switches did to the history.
    """
    now = rule_of(rule, warmup, chunk)
    positions = interpret(now, chunk, query, _stores(now, chunk, record, amended))
    return {frame: position - _moved(frame, amended) for frame, position in positions.items()}


def read_parts(
    rule: Rule,
    warmup: Warmup | None,
    chunk: Chunk,
    query: int,
    record: Record | None = None,
    amended: Amended | None = None,
) -> dict[Key, int]:
    """The parts of frames that it reads besides: what they are -> position."""
    now = rule_of(rule, warmup, chunk)
    stores = _stores(now, chunk, record, amended)
    stands = {(t.store, p.frames, p.index, p.of): p.at for t, p in _parts(now, chunk, query, stores)}
    positions = interpret_parts(now, chunk, query, stores)
    return {key: position - _moved(stands[key], amended) for key, position in positions.items()}


def _stores(rule: Rule, chunk: Chunk, record: Record | None, amended: Amended | None) -> Stores:
    stores = replay(rule, record or {}, chunk.start) if rule.stateful else {}
    return {**stores, FORGOTTEN: set(amended.forgotten)} if amended is not None else stores


def _moved(frame: int, amended: Amended | None) -> int:
    """How much farther away a frame is seen since the cuts behind it."""
    return sum(jump for committed, jump in amended.cuts if frame < committed) if amended is not None else 0


def live(rule: Rule, warmup: Warmup | None, chunks: Sequence[Chunk], at: int) -> set[int]:
    """Committed frames that chunk `at` or a later one of `chunks` reads: what must be held. Stateless rules only."""
    needed: set[int] = set()
    for chunk in chunks[at:]:
        for query in chunk.queries:
            needed |= set(read(rule, warmup, chunk, query))
    return {frame for frame in needed if frame < chunks[at].start}
