"""Permutations and indices as the graph spells them."""

from __future__ import annotations

import sympy
from torch.fx import Node

from .graph_view import GraphView
from .ops import argument, op_name, trailing


def permutation(node: Node, rank: int) -> tuple[int, ...] | None:
    """`order` such that output dim i is input dim order[i], or None if it is not a permutation known here."""
    name = op_name(node)
    order = list(range(rank))
    if name == "getattr":
        attribute = node.args[1] if len(node.args) > 1 else None
        if (attribute == "mT" and rank >= 2) or (attribute == "T" and rank == 2):
            return (*order[:-2], order[-1], order[-2])
        return None
    if name == "t":
        return tuple(reversed(order)) if rank <= 2 else None
    if name == "transpose":
        first = argument(node, 1, "dim0", node.kwargs.get("axis0"))
        second = argument(node, 2, "dim1", node.kwargs.get("axis1"))
        if not isinstance(first, int) or not isinstance(second, int):
            return None
        order[first % rank], order[second % rank] = order[second % rank], order[first % rank]
        return tuple(order)
    if name == "permute":
        dims = trailing(node, "dims")
        if len(dims) != rank or not all(isinstance(d, int) for d in dims):
            return None
        return tuple(d % rank for d in dims)
    source, target = argument(node, 1, "source"), argument(node, 2, "destination")
    sources = (source,) if isinstance(source, int) else tuple(source or ())
    targets = (target,) if isinstance(target, int) else tuple(target or ())
    if not sources or len(sources) != len(targets) or not all(isinstance(i, int) for i in (*sources, *targets)):
        return None
    places = {t % rank: s % rank for s, t in zip(sources, targets, strict=True)}
    rest = iter(d for d in order if d not in places.values())
    return tuple(places[i] if i in places else next(rest) for i in range(rank))


def full_index(index: object, shape: tuple[sympy.Expr, ...], view: GraphView) -> bool:
    """Whether indexing with `index` only adds dims: every slice is full, the rest are None or Ellipsis."""
    items = index if isinstance(index, tuple) else (index,)
    given = [i for i in items if i is not None and i is not Ellipsis]
    dims = list(range(len(given)))
    if Ellipsis in items:
        after = len([i for i in items[items.index(Ellipsis) + 1 :] if i is not None])
        dims = [*range(len(given) - after), *range(len(shape) - after, len(shape))]
    return len(given) <= len(shape) and all(
        isinstance(item, slice) and _is_full(item, shape[dim], view) for item, dim in zip(given, dims, strict=True)
    )


def _is_full(item: slice, size: sympy.Expr, view: GraphView) -> bool:
    starts = item.start is None or view.facts.equal(view.expr(item.start), sympy.S.Zero)
    stops = item.stop is None or view.facts.le(size, view.expr(item.stop))
    return starts and stops and item.step in (None, 1)
