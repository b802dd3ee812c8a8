"""Everything that touches a cache, or a copy of one: writes of rows, views, and whoever else reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx import Node

from .axes import label_dims
from .graph_view import GraphView
from .history import landing
from .normal_form import Cursor
from .ops import argument, op_name, writes_in_place
from .site import Rows
from .slices import index_rows

_METADATA = frozenset({"size", "dim", "stride", "numel", "ndimension", "is_contiguous"})


@dataclass(frozen=True)
class Write:
    """An in-place write of `value` into rows of the cache."""

    node: Node
    rows: Rows
    value: Cursor


@dataclass(frozen=True)
class Uses:
    """Everything that touches a cache input.

    Attributes:
        writes: plain writes of a range of rows, in graph order.
        aliases: views of the input (and what may be one).
        consumers: other nodes that read it or a view of it.
        unknown: nodes that change it in a way that is not understood.
    """

    writes: tuple[Write, ...]
    aliases: frozenset[Node]
    consumers: tuple[Node, ...]
    unknown: tuple[Node, ...]


def uses(view: GraphView, base: Node, labels: tuple[str, ...]) -> Uses:
    """List the uses of a graph input, or of a copy of one, whose dims are `labels`."""
    aliases, writes, consumers, unknown = {base}, [], [], []
    queue = [base]
    while queue:
        node = queue.pop()
        for user in view.users(node):
            if writes_in_place(user, node):
                write = _write(view, base, labels, node, user)
                (unknown if write is None else writes).append(user if write is None else write)
            elif view.aliases(user, node):
                if user not in aliases:
                    aliases.add(user)
                    queue.append(user)
            elif not (node is base and op_name(user) in _METADATA):
                consumers.append(user)
    return Uses(
        tuple(sorted(writes, key=lambda w: view.order[w.node])),
        frozenset(aliases),
        tuple(dict.fromkeys(sorted(consumers, key=view.order.__getitem__))),
        tuple(unknown),
    )


def _write(view: GraphView, base: Node, labels: tuple[str, ...], target: Node, node: Node) -> Write | None:
    """`target[index] = value` or `target.copy_(value)`, where `target` is the cache or a view of it."""
    name = op_name(node)
    if name in ("setitem", "__setitem__"):
        index, value = node.args[1], node.args[2]
    elif name == "copy_":
        index, value = Ellipsis, argument(node, 1, "src")
    else:
        return None
    shape, given = view.shape(target), view.shape(value)
    ranges = None if shape is None else index_rows(view, shape, _decided(view, index))
    if ranges is None or given is None:
        return None
    own = tuple(str(i) for i in range(len(shape)))
    back = landing(view, Cursor(target, label_dims(own, shape)), until=base)
    if back.node is not base or any(len(dim) > 1 for dim in back.cursor.axes):
        return None
    # Dims of the target, in the names of the cache's dims.
    named = {dim[0].label: labels[i] for i, dim in enumerate(back.cursor.axes) if dim}
    free = [labels[i] for i, dim in enumerate(back.cursor.axes) if not dim]
    dims = [named[name] if name in named else (free.pop(0) if free else "") for name in own]
    seq = dims.index("seq") if "seq" in dims else None
    if seq is None or set(ranges) - {seq} or set(back.spans) - {own[seq]}:
        return None
    outer = back.rows(own[seq], view) or Rows(sympy.S.Zero, view.shape(base)[labels.index("seq")])
    inner = ranges.get(seq, Rows(sympy.S.Zero, shape[seq]))
    rows = Rows(sympy.expand(outer.start + inner.start), sympy.expand(outer.start + inner.stop))
    region = [s if i != seq else rows.stop - rows.start for i, s in enumerate(shape)]
    if len(given) != len(region) or not all(view.facts.equal(a, b) for a, b in zip(given, region, strict=True)):
        return None  # a broadcast write
    return Write(node, rows, Cursor(value, label_dims(dims, given)))


def _decided(view: GraphView, index: Any) -> Any:
    """An index of slices whose bounds hold no Max or Min: which side it is, is guarded.

    A pass writes either in front of some row or behind it, which decides how much it writes.
    """
    if isinstance(index, tuple):
        return tuple(_decided(view, item) for item in index)
    if not isinstance(index, slice):
        return index
    return slice(*(view.decided(b) if isinstance(b, Node) else b for b in (index.start, index.stop)), index.step)
