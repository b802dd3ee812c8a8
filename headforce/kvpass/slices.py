"""Slices as Python means them: which rows of which dims `x[:, a:b]`, `narrow`, `split` and `chunk` keep."""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy
from torch.fx import Node

from .graph_view import GraphView
from .ops import argument, op_name, tensor_argument
from .site import Rows


def slices(view: GraphView, node: Node) -> tuple[Node, dict[int, Rows]] | None:
    """The tensor that a node slices, and the rows it keeps of each dim that it cuts; None if it is not a plain slice.

    Accepts `x[:, a:b]`, `x[..., a:b, :]`, `x.narrow(1, a, n)`, and a piece of `split` or `chunk`.
    """
    name = op_name(node)
    if name == "narrow":
        source, dim = tensor_argument(node), argument(node, 1, "dim")
        start, length = view.expr(argument(node, 2, "start")), view.expr(argument(node, 3, "length"))
        shape = view.shape(source)
        if shape is None or not isinstance(dim, int) or start is None or length is None:
            return None
        start = bound(view, start, shape[dim % len(shape)], sympy.S.Zero)
        return None if start is None else (source, {dim % len(shape): Rows(start, sympy.expand(start + length))})
    if name != "getitem" or not isinstance(node.args[0], Node):
        return None
    if op_name(node.args[0]) in ("split", "chunk"):
        return _piece(view, node)
    shape = view.shape(node.args[0])
    if shape is None or view.shape(node) is None:
        return None
    ranges = index_rows(view, shape, node.args[1])
    return None if ranges is None else (node.args[0], ranges)


class Every(NamedTuple):
    """Every `step`-th row of a dim, from `first` on; `step` divides the rows."""

    first: int
    step: int


def cuts(view: GraphView, node: Node) -> tuple[Node, dict[int, Rows | Every | int], tuple[int, ...]] | None:
    """`slices`, also for a tuple with None, integers or steps in it, such as `x[a:b, None, ::2]`: what is kept of each
    dim of the tensor that is cut, and the dims of the result that None made."""
    index = node.args[1] if op_name(node) == "getitem" else ()
    if not isinstance(index, tuple) or all(item is Ellipsis or _plain(item) for item in index):
        found = slices(view, node)
        return None if found is None else (found[0], {**found[1]}, ())
    shape = view.shape(node.args[0])
    if shape is None or view.shape(node) is None:
        return None
    out: dict[int, Rows | Every | int] = {}
    new: list[int] = []
    dim = place = 0
    for item in index:
        if item is None:
            new.append(place)
            place += 1
            continue
        if item is Ellipsis:
            skipped = len(shape) - sum(other not in (None, Ellipsis) for other in index)
            dim, place = dim + skipped, place + skipped
            continue
        if isinstance(item, int):
            if not shape[dim].is_Integer:
                return None
            out[dim] = item % int(shape[dim])
        elif _plain(item):
            rows = index_rows(view, (shape[dim],), item)
            if rows is None:
                return None
            out |= {dim: rows[0]} if rows else {}
        else:
            every = _every(item, shape[dim])
            if every is None:
                return None
            out[dim] = every
        dim, place = dim + 1, place + (not isinstance(item, int))
    return node.args[0], out, tuple(new)


def _plain(item: object) -> bool:
    return isinstance(item, slice) and item.step in (None, 1)


def _every(item: object, size: sympy.Expr) -> Every | None:
    """What `x[first::step]` keeps of a dim of this size."""
    if not isinstance(item, slice) or item.stop is not None or not size.is_Integer:
        return None
    first, step = item.start or 0, item.step
    if not (isinstance(first, int) and isinstance(step, int) and 0 <= first < step) or int(size) % step:
        return None
    return Every(first, step)


def index_rows(view: GraphView, shape: tuple[sympy.Expr, ...], index: Any) -> dict[int, Rows] | None:
    """The rows that `x[index]` keeps of each dim that it cuts, for an index of slices only; None otherwise."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Node) or not (item is Ellipsis or isinstance(item, slice)) for item in items):
        return None
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    if len(items) > len(shape):
        return None
    out: dict[int, Rows] = {}
    for dim, item in enumerate(items):
        start = bound(view, item.start, shape[dim], sympy.S.Zero)
        stop = bound(view, item.stop, shape[dim], shape[dim])
        if item.step not in (None, 1) or start is None or stop is None:
            return None
        if not (start == 0 and view.facts.equal(stop, shape[dim])):
            out[dim] = Rows(start, stop)
    return out


def bound(view: GraphView, value: Any, size: sympy.Expr, default: sympy.Expr) -> sympy.Expr | None:
    """A slice bound as Python means it: negative counts from the end, and it is clipped to [0, size]."""
    if value is None:
        return default
    expr = view.expr(value)
    if expr is None:
        return None
    facts = view.facts
    if facts.nonnegative(expr):
        return expr if facts.le(expr, size) else sympy.Min(expr, size)
    if facts.nonnegative(-expr - 1):
        expr = sympy.expand(size + expr)
        return expr if facts.nonnegative(expr) else sympy.Max(sympy.S.Zero, expr)
    return None


def _piece(view: GraphView, node: Node) -> tuple[Node, dict[int, Rows]] | None:
    """`x.split(sizes, dim)[i]` and `x.chunk(n, dim)[i]`, from the sizes of the pieces themselves."""
    split, which = node.args[0], node.args[1]
    source, pieces = tensor_argument(split), split.meta.get("example_value")
    dim = argument(split, 2, "dim", 0)
    shape = view.shape(source)
    if shape is None or not isinstance(which, int) or not isinstance(dim, int) or not isinstance(pieces, (tuple, list)):
        return None
    dim, which = dim % len(shape), which % len(pieces)
    start = sum((view.expr(p.shape[dim]) for p in pieces[:which]), sympy.S.Zero)
    return source, {dim: Rows(start, start + view.expr(pieces[which].shape[dim]))}
