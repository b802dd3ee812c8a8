"""The oracle: a brute-force interpreter of policies, and the definition of what is right.

Nothing here is fast or clever, and nothing here is shared with the code it judges: plain sets and dictionaries, the
`materialize` of every operator, one query frame at a time. Plans must agree with it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import HeadforceError
from .chunk import Chunk
from .node import Intersection, Node, Term, Union
from .rule import Rule

if TYPE_CHECKING:
    from .memory import Record
    from .policy import Warmup


def interpret(rule: Rule, chunk: Chunk, query: int, stores: dict[str, set[int]] | None = None) -> dict[int, int]:
    """What `query` reads besides its chunk: frame -> position. `stores` is what each stateful operator holds."""
    positions = _interpret(rule.node, chunk, query, stores or {})
    if rule.contiguous:
        kept = sorted(positions)
        return {frame: chunk.start - len(kept) + place for place, frame in enumerate(kept)}
    return positions


def _interpret(node: Node, chunk: Chunk, query: int, stores: dict[str, set[int]]) -> dict[int, int]:
    if isinstance(node, Term):
        frames = stores.get(node.store, set()) if node.op.stateful else node.op.materialize(chunk, query)
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


def replay(rule: Rule, record: Record, committed: int) -> dict[str, set[int]]:
    """What each store holds once `committed` frames are history, from the record alone."""
    stores: dict[str, set[int]] = {}
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


def read(rule: Rule, warmup: Warmup | None, chunk: Chunk, query: int, record: Record | None = None) -> dict[int, int]:
    """What query frame `query` of a head with `rule` reads besides its chunk: frame -> position."""
    now = rule_of(rule, warmup, chunk)
    return interpret(now, chunk, query, replay(now, record or {}, chunk.start) if now.stateful else None)


def live(rule: Rule, warmup: Warmup | None, chunks: Sequence[Chunk], at: int) -> set[int]:
    """Committed frames that chunk `at` or a later one of `chunks` reads: what must be held. Stateless rules only."""
    needed: set[int] = set()
    for chunk in chunks[at:]:
        for query in chunk.queries:
            needed |= set(read(rule, warmup, chunk, query))
    return {frame for frame in needed if frame < chunks[at].start}
