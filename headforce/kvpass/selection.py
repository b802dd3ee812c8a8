"""Taking one index, every n-th, or the n-th part of a dim; what was taken stays in the axes as an atom `=i`."""

from __future__ import annotations

import sympy
from torch.fx import Node

from .axes import Atom, Dim
from .graph_view import GraphView
from .normal_form import Cursor
from .ops import argument, op_name, tensor_argument
from .site import Rows
from .slices import index_rows, slices


def fixed(index: int, size: sympy.Expr) -> Atom:
    """A piece of a dim of which one index is taken."""
    return Atom(f"={index}", size)


def select(cursor: Cursor, view: GraphView) -> Cursor | None:
    """One step back through taking an index, every n-th, or the n-th part of a dim: `x[i]`, `x[..., 0::2]`, `x[...,
    :D//2]`,
    a piece of `unbind`, `chunk` or `split`. What was taken stays in the dim as an atom `=i`."""
    node, name = cursor.node, op_name(cursor.node)
    if name == "select":
        source, dim, index = tensor_argument(node), argument(node, 1, "dim"), argument(node, 2, "index")
        shape = view.shape(source)
        return _insert(cursor, source, dim, index, view) if shape is not None and isinstance(dim, int) else None
    if name != "getitem" or not isinstance(node.args[0], Node):
        return None
    outer = node.args[0]
    if op_name(outer) == "unbind":
        return _insert(cursor, tensor_argument(outer), argument(outer, 1, "dim", 0), node.args[1], view)
    if op_name(outer) in ("chunk", "split"):
        found = slices(view, node)
        return None if found is None else _parts(cursor, found[0], found[1], view)
    shape = view.shape(outer)
    if shape is None or view.shape(node) is None:
        return None
    items = list(node.args[1]) if isinstance(node.args[1], tuple) else [node.args[1]]
    if any(not (item is Ellipsis or isinstance(item, (int, slice))) for item in items):
        return None
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    items += [slice(None)] * (len(shape) - len(items))
    busy = [
        i for i, item in enumerate(items) if not (isinstance(item, slice) and index_rows(view, (shape[i],), item) == {})
    ]
    if len(busy) != 1:
        return None
    dim, item = busy[0], items[busy[0]]
    if isinstance(item, int):
        return _insert(cursor, outer, dim, item, view)
    if item.step in (None, 1):
        ranges = index_rows(view, shape, tuple(items))
        return None if not ranges else _parts(cursor, outer, ranges, view)
    start = item.start or 0
    if (
        not isinstance(item.step, int)
        or not isinstance(start, int)
        or not 0 <= start < item.step
        or item.stop is not None
    ):
        return None
    if not view.facts.equal(shape[dim], cursor_size(cursor, dim, view) * item.step):
        return None
    here = (*cursor.axes[dim], fixed(start, sympy.Integer(item.step)))
    return cursor.to(outer, (*cursor.axes[:dim], here, *cursor.axes[dim + 1 :]), view)


def cursor_size(cursor: Cursor, dim: int, view: GraphView) -> sympy.Expr:
    """The size of a dim at the cursor's node."""
    return view.shape(cursor.node)[dim]


def _insert(cursor: Cursor, source: Node | None, dim: object, index: object, view: GraphView) -> Cursor | None:
    shape = view.shape(source)
    if shape is None or not isinstance(index, int) or not isinstance(dim, int) or not shape[dim].is_Integer:
        return None
    dim, size = dim % len(shape), int(shape[dim])
    here: Dim = () if size == 1 else (fixed(index % size, shape[dim]),)
    return cursor.to(source, (*cursor.axes[:dim], here, *cursor.axes[dim:]), view)


def _parts(cursor: Cursor, source: Node, ranges: dict[int, Rows], view: GraphView) -> Cursor | None:
    """The i-th of n equal parts of one dim (heads and channels; rows of a table are read by the caller)."""
    if len(ranges) != 1:
        return None
    (dim, rows), shape = next(iter(ranges.items())), view.shape(source)
    width = rows.stop - rows.start
    if not (width.is_Integer and rows.start.is_Integer and shape[dim].is_Integer) or not width:
        return None
    if int(shape[dim]) % int(width) or int(rows.start) % int(width) or any(a.label == "seq" for a in cursor.axes[dim]):
        return None
    here = (fixed(int(rows.start) // int(width), shape[dim] / width), *cursor.axes[dim])
    return cursor.to(source, (*cursor.axes[:dim], here, *cursor.axes[dim + 1 :]), view)
