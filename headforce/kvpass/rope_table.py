"""Reading a RoPE table: which rows and columns of it turn which pairs, for which positions.

Starting from the factor that multiplies a query or key, with its dims labelled in the axes of that operand, the
expression is followed back through `cat`, `expand`, `view`, slices, `cos` and `sin` to the tables. Each way ends in
a `Leaf`. Accepted:

    time = ft[s:s+f].view(f, 1, 1, -1).expand(f, h, w, -1)          # rows and columns of the frame likewise
    torch.cat([time, row, column], -1).reshape(f * h * w, 1, -1)
    table[s:s+n]                               # one-dimensional positions
    table[torch.arange(s, s + f)]              # rows by index
    torch.outer(torch.arange(s, s + f), inv_freq).cos()         # or einsum("i,j->ij", ...), or arange[:, None] * freq
    torch.outer(torch.arange(s, s + f).repeat_interleave(tokens), inv_freq)
    cos.repeat_interleave(2, -1); torch.cat([cos, cos], -1); table[..., 0::2]     # both lanes of a pair in one table
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch.fx import Node

from .axes import ONE, Atom, Axes, Dim
from .constants import constant, uniform
from .graph_view import GraphView
from .normal_form import Cursor, peel
from .ops import argument, op_name, sequence_argument, tensor_argument
from .selection import fixed, select
from .site import Columns
from .slices import Every, cuts

_UNARY = frozenset({"cos", "sin", "real", "imag"})


@dataclass(frozen=True)
class Leaf:
    """A part of a table.

    Attributes:
        root: the table: a graph input, or the node that makes it.
        first: first position on the head dim's axis that it serves, in channels.
        lanes: channels from one of its positions to the next (2: one column for each interleaved pair).
        count: positions on the head dim that it serves.
        row: the piece of the operand's rows that selects the table's row, or None if all have the same.
        start: the row for that piece's position 0; None if the table's rows are not sliced in the graph.
        columns: where its values stand in `root`; None if that cannot be read.
        path: the functions between root and factor, such as ("cos",). "rates": the root holds the rates of the pairs,
            and the graph multiplies them with positions.
        exact: whether angles, or rates, are what the root holds, and not rounded on the way to those functions.
    """

    root: Node
    first: sympy.Expr
    lanes: sympy.Expr
    count: sympy.Expr
    row: Atom | None
    start: sympy.Expr | None
    columns: Columns | None
    path: tuple[str, ...]
    exact: bool

    def key(self) -> tuple:
        """What cos and sin of one rotation share."""
        return (self.first, self.lanes, self.count, self.row, self.start)


def broadcast(axes: Axes, shape: Sequence[sympy.Expr]) -> Axes:
    """The axes of an operand of `shape` that broadcasts to a result with `axes`.

    A whole axis takes its size from `shape`: it is the same number, in the form that the operand's own reshapes divide.
    """
    out: list[Dim] = []
    for dim, size in zip(axes[len(axes) - len(shape) :], shape, strict=True):
        whole = len(dim) == 1 and dim[0].stride == 1
        out.append(() if size == ONE else (dim[0]._replace(size=size),) if whole else dim)
    return tuple(out)


def leaves(view: GraphView, cursor: Cursor) -> list[Leaf] | None:
    """The parts of the tables behind a factor, in the order of the head dim; None if it cannot be read."""
    state = _State(cursor, sympy.S.Zero, None, None, None, ())
    return _follow(view, state)


@dataclass(frozen=True)
class _Cut:
    """A slice of a table's columns: the first of them, and what its positions are."""

    first: sympy.Expr
    pieces: Dim


@dataclass(frozen=True)
class _State:
    cursor: Cursor
    first: sympy.Expr
    row: Atom | None
    start: sympy.Expr | None
    cut: _Cut | None
    path: tuple[str, ...]


def _follow(view: GraphView, state: _State) -> list[Leaf] | None:
    while True:
        cursor, name = state.cursor, op_name(state.cursor.node)
        step = peel(cursor, view) or (_row_slice(view, state) or select(cursor, view))
        if isinstance(step, _State):
            state = step
        elif step is not None:
            state = replace(state, cursor=step)
        elif name == "cat":
            return _branches(view, state)
        elif name in _UNARY or (name == "getattr" and cursor.node.args[1] in _UNARY):
            source = tensor_argument(cursor.node)
            path = name if name in _UNARY else cursor.node.args[1]
            state = replace(state, cursor=_uncast(cursor.to(source, cursor.axes, view)), path=(*state.path, path))
        elif name == "view_as_real":
            lane = cursor.axes[-1]
            if len(lane) != 1 or lane[0].label not in ("=0", "=1"):
                return None
            path = "real" if lane[0].label == "=0" else "imag"
            state = replace(
                state, cursor=cursor.to(tensor_argument(cursor.node), cursor.axes[:-1], view), path=(*state.path, path)
            )
        elif name == "polar" and _is_one(view, argument(cursor.node, 0, "abs")):
            angle = argument(cursor.node, 1, "angle")
            state = replace(state, cursor=_uncast(cursor.to(angle, cursor.axes, view)), path=(*state.path, "polar"))
        elif (indexed := _indexed(view, state)) is not None:
            state = indexed
        elif (product := _product(view, state)) is not None:
            table, rates = product
            return (_rates(view, rates) if rates is not None else None) or _leaf(view, table)
        else:
            return _leaf(view, state)


def _uncast(cursor: Cursor) -> Cursor:
    """The cursor behind a function: how its result was cast says nothing about its argument."""
    return replace(cursor, casts=())


def _is_one(view: GraphView, node: object) -> bool:
    value = uniform(view, node)
    return value is not None and float(value) == 1


def _row_slice(view: GraphView, state: _State) -> _State | None:
    """`table[s:s+f]` and a cut of columns: rows and columns keep their place in the table."""
    found = cuts(view, state.cursor.node)
    if found is None:
        return None
    source, ranges, new = found
    left = iter([dim for place, dim in enumerate(state.cursor.axes) if place not in new])
    shape = view.shape(source)
    axes = [() if isinstance(ranges.get(dim), int) else next(left) for dim in range(len(shape))]
    for dim, rows in ranges.items():
        here = axes[dim]
        if isinstance(rows, int):
            axes[dim] = () if shape[dim] == ONE else (fixed(rows, shape[dim]),)
        elif isinstance(rows, Every):
            axes[dim] = (*here, fixed(rows.first, sympy.Integer(rows.step)))
        elif len(here) == 1 and here[0].label == "seq" and state.row is None:
            state = replace(state, row=here[0], start=rows.start)
            axes[dim] = (Atom("row", shape[dim]),)
        elif not here and state.row is None and state.start is None:
            # One row for every position: the time of a chunk of a single frame.
            state = replace(state, start=rows.start)
            axes[dim] = (Atom("row", shape[dim]),)
        elif here and here[0].label == "dim" and state.cut is None:
            state = replace(state, cut=_Cut(rows.start, here))
            axes[dim] = (Atom("column", shape[dim]),)
        elif len(here) == 1 and here[0].label == "row" and state.start is not None:
            state = replace(state, start=sympy.expand(state.start + rows.start))
        else:
            return None
    return replace(state, cursor=state.cursor.to(source, tuple(axes), view))


def _branches(view: GraphView, state: _State) -> list[Leaf] | None:
    """A `cat` along the head dim: each part serves its own pairs."""
    node, axes = state.cursor.node, state.cursor.axes
    dim, parts = argument(node, 1, "dim", 0), sequence_argument(node)
    if not isinstance(dim, int) or not parts:
        return None
    dim %= len(axes)
    here = axes[dim]
    if not here or here[0].label != "dim" or any(a.label == "dim" for a in here[1:]):
        return None
    inner = sympy.prod(a.size for a in here[1:])
    out, place = [], sympy.S.Zero
    for part in parts:
        shape = view.shape(part)
        if shape is None or not shape[dim].is_Integer or int(shape[dim]) % int(inner):
            return None
        size = shape[dim] / inner
        own = (here[0]._replace(size=size), *here[1:])
        at = replace(state, cursor=state.cursor.to(part, (*axes[:dim], own, *axes[dim + 1 :]), view))
        found = _follow(view, replace(at, first=state.first + place * here[0].stride))
        if found is None:
            return None
        out += found
        place += size
    return out


def _indexed(view: GraphView, state: _State) -> _State | None:
    """`table[positions]`, `torch.index_select(table, 0, positions)`: rows by a tensor of positions."""
    node = state.cursor.node
    if op_name(node) == "getitem" and isinstance(node.args[1], Node):
        source, index = node.args[0], node.args[1]
    elif op_name(node) == "index_select" and argument(node, 1, "dim") == 0:
        source, index = tensor_argument(node), argument(node, 2, "index")
    else:
        return None
    shape, axes = view.shape(index), state.cursor.axes
    if shape is None or len(shape) != 1 or view.shape(source) is None or (state.row, state.start) != (None, None):
        return None
    found = position(view, Cursor(index, axes[:1]))
    if found is None:
        return None
    table, (start, row) = (Atom("row", view.shape(source)[0]),), found
    return replace(state, cursor=state.cursor.to(source, (table, *axes[1:]), view), row=row, start=start)


def _product(view: GraphView, state: _State) -> tuple[_State, _State | None] | None:
    """`outer(positions, inv_freq)` or `positions[:, None] * inv_freq`, a table that is computed in the graph: read as
    that table, and as the rates if the angles are their multiples."""
    node, axes, name = state.cursor.node, state.cursor.axes, op_name(state.cursor.node)
    product = name == "einsum" and str(node.args[0]).replace(" ", "") == "i,j->ij"
    if not (name in ("outer", "mul") or product) or (state.row, state.start) != (None, None):
        return None
    given = (
        node.args[1:] if product else (argument(node, 0, "input"), argument(node, 1, "other", node.kwargs.get("vec2")))
    )
    operands = [a for a in given if isinstance(a, Node)]
    if len(operands) != 2:
        return None
    for i, operand in enumerate(operands):
        shape = view.shape(operand)
        if shape is None:
            return None
        own = broadcast(axes, shape) if name == "mul" else axes[i : i + 1]
        found = position(view, Cursor(operand, own))
        if found is not None and (found[1] is None or found[1].label == "seq"):
            table, rates = replace(state, row=found[1], start=found[0]), operands[1 - i]
            shape = view.shape(rates)
            if shape is None:
                return None
            # Angles in half precision are no multiples of the rates.
            exact = view.dtype(node) in (torch.float32, torch.float64)
            of_rates = broadcast(axes, shape) if name == "mul" else axes[1 - i : 2 - i]
            cursor = _uncast(state.cursor.to(rates, of_rates, view))
            return table, replace(table, cursor=cursor, path=(*state.path, "rates")) if exact else None
    return None


def _rates(view: GraphView, state: _State) -> list[Leaf] | None:
    """The parts behind rates, where each is a vector that is known: a graph input, or made of constants."""
    if any(atom.label == "seq" for dim in state.cursor.axes for atom in dim):
        return None
    found = _follow(view, state) or ()
    for leaf in found:
        sizes = [size for size in view.shape(leaf.root) or () if size != ONE]
        known = leaf.root.op == "placeholder" or constant(view, leaf.root) is not None
        if not known or not leaf.exact or len(sizes) != 1 or leaf.columns is None:
            return None
    return list(found) or None


_TOO_SHORT = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16})
"""What does not hold the frames of a video."""


def position(view: GraphView, cursor: Cursor) -> tuple[sympy.Expr, Atom | None] | None:
    """The first value of `arange(s, e)`, `arange(n) + s` or `s + arange(n)`, through views, casts and repeats, and the
    piece of the rows that counts on from there, if it is not one position for all; None for another tensor."""
    offset = sympy.S.Zero
    while True:
        node, name = cursor.node, op_name(cursor.node)
        step = peel(cursor, view)
        if step is not None:
            cursor = step
        elif name == "add":
            tensors = [a for a in node.args if view.shape(a) is not None]
            numbers = [view.expr(a) for a in node.args if view.shape(a) is None]
            if len(tensors) != 1 or len(numbers) != 1 or numbers[0] is None or node.kwargs:
                return None
            offset += numbers[0]
            cursor = cursor.to(tensors[0], cursor.axes, view)
        elif name == "arange":
            start = _begin(view, node)
            atoms = [a for dim in cursor.axes for a in dim]
            if start is None or len(atoms) > 1 or not _TOO_SHORT.isdisjoint({view.dtype(node), *cursor.casts}):
                return None
            return sympy.expand(offset + start), atoms[0] if atoms else None
        else:
            return None


def _begin(view: GraphView, node: Node) -> sympy.Expr | None:
    """The first value of an `arange` whose values are one apart."""
    given = dict(zip(("end",) if len(node.args) == 1 else ("start", "end", "step"), node.args, strict=False))
    given |= {name: node.kwargs[name] for name in ("start", "end", "step") if name in node.kwargs}
    return view.expr(given.get("start", 0)) if given.get("step", 1) == 1 else None


def _leaf(view: GraphView, state: _State) -> list[Leaf] | None:
    """The end of a way. A table that is not sliced in the graph has no start."""
    if view.writers(state.cursor.node):
        return None
    atoms = [a for dim in state.cursor.axes for a in dim]
    row = state.row
    if row is None:
        rows = [a for a in atoms if a.label == "seq"]
        if len(rows) > 1:
            return None
        row = rows[0] if rows else None
    pieces = [a for a in (*atoms, *(state.cut.pieces if state.cut else ())) if a.label == "dim"]
    if len(pieces) != 1:
        return None
    root, (piece,) = state.cursor.node, pieces
    turns = {"cos", "sin", "polar", "rates"}.isdisjoint(state.path)  # these may be rounded like all that they multiply
    exact = turns or {torch.float32, torch.float64}.issuperset(state.cursor.casts)
    return [Leaf(root, state.first, piece.stride, piece.size, row, state.start, _columns(state), state.path, exact)]


def _columns(state: _State) -> Columns | None:
    """Where the piece of the head dim stands in the table; None if that is not the same for all of its rows."""
    axes = state.cursor.axes
    of_rows = [i for i, dim in enumerate(axes) if any(a.label in ("row", "seq") for a in dim)]
    if len(of_rows) > 1 or any(len(axes[i]) != 1 for i in of_rows):
        return None
    place = _place([a for i, dim in enumerate(axes) if i not in of_rows for a in dim], state.cut)
    return None if place is None else Columns(of_rows[0] if of_rows else None, *place)


def _place(pieces: Sequence[Atom], cut: _Cut | None) -> tuple[int, int, int] | None:
    """First position, step and count of the piece of the head dim among all positions of these pieces."""
    first, step, count, width = 0, 0, 0, 1
    for atom in reversed(pieces):
        if not atom.size.is_Integer:
            return None
        if atom.label.startswith("="):
            first += int(atom.label[1:]) * width
        elif atom.label == "dim" and not step:
            step, count = width, int(atom.size)
        elif atom.label == "column" and cut is not None and not step:
            inner = _place(cut.pieces, None)
            if inner is None or not cut.first.is_Integer:
                return None
            first, step, count = first + (int(cut.first) + inner[0]) * width, inner[1] * width, inner[2]
        else:
            return None
        width *= int(atom.size)
    return (first, step, count) if step else None
