"""The normal form of a rule: what equality and hashing compare.

Union is associative and idempotent, and the empty rule is its unit; so is intersection, which the empty rule
annihilates. Operands of a union may change places only if they give every frame they share the same position. That is
known when all their position maps are one and the same; otherwise their order is kept. Sorting under such a partial
freedom has a unique result: take, again and again, the least operand that nothing before it blocks.
"""

from __future__ import annotations

from .node import Intersection, Node, Term, Union, terms_of
from .positions import PositionMap


def normalise(node: Node) -> Node:
    """The normal form of `node`."""
    if isinstance(node, Term):
        return Term(node.op) if _empty(node) else node
    parts: list[Node] = []
    for part in map(normalise, node.parts):
        inner = part.parts if isinstance(part, type(node)) else (part,)
        parts += [p for p in inner if p not in parts]
    if isinstance(node, Union):
        parts = _sorted([p for p in parts if not _empty(p)]) or parts[:1]
        return parts[0] if len(parts) == 1 else Union(tuple(parts))
    for part in parts:
        if _empty(part):
            return part
    # The first operand gives the positions, or the parts; the others only filter.
    fixed = 0 if len(set().union(*map(_maps, parts))) == 1 and not _paged(parts[0]) else 1
    parts = parts[:fixed] + sorted(parts[fixed:], key=str)
    return parts[0] if len(parts) == 1 else Intersection(tuple(parts))


def _empty(node: Node) -> bool:
    return isinstance(node, Term) and node.op.name == "drop"


def _paged(node: Node) -> bool:
    return any(term.op.paged for term in terms_of(node))


def _maps(node: Node) -> set[PositionMap]:
    """The maps that can give a frame of `node` its position."""
    if isinstance(node, Term):
        return {node.map}
    if isinstance(node, Union):
        return set().union(*map(_maps, node.parts))
    return _maps(node.parts[0])


def _sorted(parts: list[Node]) -> list[Node]:
    rest, result = list(parts), []
    while rest:
        free = [
            part for i, part in enumerate(rest) if all(len(_maps(part) | _maps(before)) == 1 for before in rest[:i])
        ]
        least = min(free, key=str)
        rest.remove(least)
        result.append(least)
    return result
