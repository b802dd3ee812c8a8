"""Rotary position embedding on a query or key, in the three arithmetics that video models use.

Complex multiplication ("complex"):

    torch.view_as_real(torch.view_as_complex(x.to(torch.float64).reshape(b, s, n, -1, 2)) * table).flatten(3)

Real, on lanes ("interleaved": lanes 2p and 2p+1; "split_half": lanes p and p + D/2):

    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)          # or x[..., 0::2], x[..., 1::2]; x.chunk(2, -1) for halves
    o1, o2 = x1 * cos - x2 * sin, x1 * sin + x2 * cos     # in any order of operands
    torch.stack([o1, o2], -1).flatten(-2)                 # or out[..., 0::2] = o1; torch.cat([o1, o2], -1) for halves

Real, on whole vectors:

    x * cos + rotate(x) * sin       # rotate: stack([-x2, x1], -1).flatten(-2), or cat([-x2, x1], -1)

with cos and sin shown to be equal on both lanes of a pair (`repeat_interleave(2, -1)`, `cat([c, c], -1)`). A batch
may be rotated sample by sample and stacked. Counter-examples, not recognised: a rotation of part of the head dim,
the inverse rotation, tables that differ between the lanes, a whole table of unknown origin in the third form.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from ..axes import ONE, single
from ..graph_view import GraphView
from ..normal_form import Cursor, settle, walk
from ..ops import argument, op_name, sequence_argument, tensor_argument
from ..rope_clock import rotation_of
from ..rope_factors import factors_of
from ..rope_lanes import behind_writes, lane_of, split_lanes, terms_of
from ..rope_table import Leaf, broadcast, leaves
from .base import Rotation, recognizer


@recognizer("rope", order=10)
def rotary(view: GraphView, cursor: Cursor) -> Rotation | None:
    """Recognise the rotation whose result the cursor sees; None if there is none."""
    for step in walk(cursor, view):
        for form in (_complex, _lanes, _whole_vector, _per_sample):
            found = form(view, _heads_once(step))
            if found is not None:  # what is rounded twice behind it is left to the graph
                return found if step.one_cast(view) else replace(found, factors=())
    written = behind_writes(view, _heads_once(step))
    return None if written is None else _lanes(view, written)


def _heads_once(cursor: Cursor) -> Cursor:
    """The cursor as if no head were repeated: that happens behind the rotation and does not change what is rotated."""
    if sum(atom.label == "head" for dim in cursor.axes for atom in dim) != 1:
        return cursor
    once = tuple(tuple(a._replace(stride=ONE) if a.label == "head" else a for a in dim) for dim in cursor.axes)
    return replace(cursor, axes=once)


def _complex(view: GraphView, cursor: Cursor) -> Rotation | None:
    if op_name(cursor.node) != "view_as_real":
        return None
    lane = single(cursor.axes[-1], "dim")
    if lane is None or lane.size != 2 or lane.stride != 1:
        return None
    product = cursor.to(tensor_argument(cursor.node), cursor.axes[:-1], view)
    *_, product = walk(product, view)
    if op_name(product.node) != "mul":
        return None
    factors = [a for a in product.node.args if isinstance(a, Node)]
    for x, table in (factors, factors[::-1]) if len(factors) == 2 else ():
        if view.shape(x) is None or view.shape(x) != view.shape(product.node):
            continue
        *_, pairs = walk(product.to(x, product.axes, view), view)
        if op_name(pairs.node) != "view_as_complex" or view.shape(table) is None:
            continue
        raw = Cursor(tensor_argument(pairs.node), (*pairs.axes, (lane,)))
        parts = leaves(view, Cursor(table, broadcast(product.axes, view.shape(table))))
        found = rotation_of(view, "complex", raw, parts, parts, view.tensor(pairs.node).real.dtype)
        if found is not None:
            return replace(found, factors=factors_of(view, product.axes, table))
    return None


def _lanes(view: GraphView, cursor: Cursor) -> Rotation | None:
    joined = split_lanes(view, cursor)
    if joined is None:
        return None
    kind, first, second = joined[0], *(list(walk(lane, view))[-1] for lane in joined[1:])
    one, two = terms_of(view, first.node), terms_of(view, second.node)
    if one is None or two is None or sorted(s for s, _ in one) != [-1, 1] or [s for s, _ in two] != [1, 1]:
        return None
    (plus,) = (f for s, f in one if s > 0)
    (minus,) = (f for s, f in one if s < 0)
    if any(len(factors) != 2 for factors in (plus, minus, *(factors for _, factors in two))):
        return None
    for a, cos in (plus, plus[::-1]):
        for b, sin in (minus, minus[::-1]):
            x = lane_of(view, first, a, kind, 0)
            y = lane_of(view, first, b, kind, 1)
            if x is None or y is None or x.node is not y.node:
                continue
            for left, right in (two, two[::-1]):  # y * cos, x * sin
                found = _second(
                    view, kind, second, x, left[1], right[1], (_table(view, first, cos), _table(view, first, sin))
                )
                if found is not None:
                    return replace(found, factors=factors_of(view, first.axes, cos, sin))
    return None


def _second(
    view: GraphView, kind: str, cursor: Cursor, raw: Cursor, left: tuple, right: tuple, tables: tuple
) -> Rotation | None:
    """Check `o2 = x2 * cos + x1 * sin` against what `o1` showed."""
    for b, cos in (left, left[::-1]):
        for a, sin in (right, right[::-1]):
            x, y = lane_of(view, cursor, a, kind, 0), lane_of(view, cursor, b, kind, 1)
            if x is None or y is None or x.node is not raw.node or y.node is not raw.node:
                continue
            if (_table(view, cursor, cos), _table(view, cursor, sin)) != tables:
                continue
            return rotation_of(view, kind, raw, *tables, view.dtype(cursor.node))
    return None


def _whole_vector(view: GraphView, cursor: Cursor) -> Rotation | None:
    """`x * cos + rotate(x) * sin`."""
    terms = terms_of(view, cursor.node) if op_name(cursor.node) == "add" else None
    if terms is None or [(s, len(factors)) for s, factors in terms] != [(1, 2), (1, 2)]:
        return None
    for (_, left), (_, right) in (terms, terms[::-1]):
        for x, cos in (left, left[::-1]):
            for turned, sin in (right, right[::-1]):
                if view.shape(turned) != view.shape(cursor.node) or view.shape(x) != view.shape(cursor.node):
                    continue
                rotated = _turned(view, cursor.to(turned, cursor.axes, view))
                raw = settle(Cursor(x, cursor.axes), view)
                if rotated is None or rotated[1].node is not raw.node:
                    continue
                tables = [_paired(rotated[0], _table(view, cursor, t), raw, view) for t in (cos, sin)]
                found = rotation_of(view, rotated[0], raw, *tables, view.dtype(cursor.node))
                return found and replace(found, factors=factors_of(view, cursor.axes, cos, sin))
    return None


def _turned(view: GraphView, cursor: Cursor) -> tuple[str, Cursor] | None:
    """`rotate(x)`: lanes (-x2, x1). Returns the kind and a cursor on x."""
    for step in walk(cursor, view):
        joined = split_lanes(view, step)
        if joined is None:
            continue
        kind, first, second = joined
        terms = terms_of(view, first.node)
        if terms is None or len(terms) != 1 or terms[0][0] != -1 or len(terms[0][1]) != 1:
            return None
        x, y = lane_of(view, second, second.node, kind, 0), lane_of(view, first, terms[0][1][0], kind, 1)
        return (kind, x) if x is not None and y is not None and x.node is y.node else None
    return None


def _per_sample(view: GraphView, cursor: Cursor) -> Rotation | None:
    """`stack([rope(x[0]), rope(x[1]), ...])`: the same rotation of every batch row."""
    parts, dim = sequence_argument(cursor.node), argument(cursor.node, 1, "dim", 0)
    if op_name(cursor.node) != "stack" or len(parts) < 2 or not isinstance(dim, int):
        return None
    dim %= len(cursor.axes)
    batch = single(cursor.axes[dim], "batch")
    if batch is None:
        return None
    rest = (*cursor.axes[:dim], *cursor.axes[dim + 1 :])
    found = [rotary(view, Cursor(part, rest)) for part in parts]
    one = found[0]
    for i, rotation in enumerate(found):
        at = None if rotation is None else _batch_index(rotation.raw)
        if rotation is None or at != i or rotation.raw.node is not one.raw.node:
            return None
        if replace(rotation, raw=one.raw) != one:
            return None
    axes = tuple((batch,) if dim and dim[0].label.startswith("=") else dim for dim in one.raw.axes)
    return replace(one, raw=settle(replace(one.raw, axes=axes), view))


def _batch_index(cursor: Cursor) -> int | None:
    taken = [a.label for dim in cursor.axes for a in dim if a.label.startswith("=")]
    return int(taken[0][1:]) if len(taken) == 1 else None


def _table(view: GraphView, cursor: Cursor, node: Node) -> tuple[Leaf, ...] | None:
    shape = view.shape(node) if isinstance(node, Node) else None
    if shape is None or len(shape) > len(cursor.axes):
        return None
    axes = broadcast(cursor.axes, shape)
    asked = (node, axes, view.facts.count)  # with more facts more may be read
    if asked not in view.tables:
        found = leaves(view, Cursor(node, axes))
        view.tables[asked] = None if found is None else tuple(found)
    table: tuple[Leaf, ...] | None = view.tables[asked]
    return table


def _paired(kind: str, parts: tuple[Leaf, ...] | None, raw: Cursor, view: GraphView) -> tuple[Leaf, ...] | None:
    """A table over the whole head dim as one over pairs, if both lanes of every pair are shown to be equal."""
    if parts is None:
        return None
    if kind == "interleaved":
        return parts if all(leaf.lanes == 2 for leaf in parts) else None
    size = view.shape(raw.node)[raw.layout.index("dim")] if raw.layout else None
    low = [leaf for leaf in parts if size is not None and leaf.first < size / 2]
    high = [replace(leaf, first=leaf.first - size / 2) for leaf in parts[len(low) :]]
    if any(leaf.lanes != 1 or leaf.first + leaf.count > size / 2 for leaf in low) or low != high:
        return None
    return tuple(low)
