"""The two lanes of a rotated pair: where they are joined, which lane a factor is, and sums of products."""

from __future__ import annotations

from dataclasses import replace

import sympy
from torch.fx import Node

from .axes import Atom, Dim, label_dims, single
from .graph_view import GraphView
from .normal_form import CASTS, COPIES, Cursor, settle, step_back, walk
from .ops import argument, op_name, sequence_argument, tensor_argument
from .selection import select

Term = tuple[int, tuple[Node, ...]]


def behind_writes(view: GraphView, cursor: Cursor) -> Cursor | None:
    """The freshly made tensor that is filled by strided writes, if the cursor stands on a view of one."""
    root = view.root(cursor.node)
    while cursor is not None and cursor.node is not root:
        cursor = step_back(cursor, view)
    return cursor if cursor is not None and op_name(root) in ("empty_like", "zeros_like") else None


def split_lanes(view: GraphView, cursor: Cursor) -> tuple[str, Cursor, Cursor] | None:
    """Where the two lanes of a vector are joined: the kind and a cursor on each lane."""
    node, name = cursor.node, op_name(cursor.node)
    if name in ("stack", "cat"):
        parts, dim = sequence_argument(node), argument(node, 1, "dim", 0)
        if len(parts) != 2 or not isinstance(dim, int):
            return None
        dim %= len(cursor.axes)
        atom = single(cursor.axes[dim], "dim")
        if atom is None:
            return None
        if name == "stack":
            kind = _kind(atom, [a for d in cursor.axes for a in d if a.label == "dim" and a is not atom])
            rest = (*cursor.axes[:dim], *cursor.axes[dim + 1 :])
            return None if kind is None else (kind, *(cursor.to(p, rest, view) for p in parts))
        if atom.size == 2 and all(view.shape(p) is not None and view.shape(p)[dim] == 1 for p in parts):
            kind = _kind(atom, [a for d in cursor.axes for a in d if a.label == "dim" and a is not atom])
            rest = (*cursor.axes[:dim], (), *cursor.axes[dim + 1 :])
            return None if kind is None else (kind, *(cursor.to(p, rest, view) for p in parts))
        half = atom.size / 2
        if atom.stride != 1 or any(view.shape(p) is None or view.shape(p)[dim] != half for p in parts):
            return None
        rest = (*cursor.axes[:dim], (atom._replace(size=half),), *cursor.axes[dim + 1 :])
        return ("split_half", *(cursor.to(p, rest, view) for p in parts))
    if name in ("empty_like", "zeros_like"):
        return _strided_writes(view, cursor)
    return None


def _kind(lane: Atom, others: list[Atom]) -> str | None:
    if lane.size != 2 or len(others) != 1:
        return None
    if lane.stride == 1 and others[0].stride == 2:
        return "interleaved"
    return "split_half" if others[0].stride == 1 and lane.stride == others[0].size else None


def _strided_writes(view: GraphView, cursor: Cursor) -> tuple[str, Cursor, Cursor] | None:
    """`out = empty_like(x); out[..., 0::2] = o1; out[..., 1::2] = o2`."""
    node, writes = cursor.node, view.writers(cursor.node)
    atom = single(cursor.axes[-1], "dim")
    reads = [view.order[u] for u in node.users if u not in writes]
    if len(writes) != 2 or any(w not in node.users for w in writes) or any(r < view.order[writes[-1]] for r in reads):
        return None
    if atom is None or atom.stride != 1:
        return None
    lanes = []
    for step, write in enumerate(writes):
        if op_name(write) != "setitem" or write.args[1] not in (
            (Ellipsis, slice(step, None, 2)),
            (Ellipsis, slice(step or None, None, 2)),
        ):
            return None
        value = write.args[2]
        if view.shape(value) != (*view.shape(node)[:-1], atom.size / 2):
            return None
        lanes.append(cursor.to(value, (*cursor.axes[:-1], (Atom("dim", atom.size / 2, sympy.Integer(2)),)), view))
    return ("interleaved", *lanes)


def terms_of(view: GraphView, node: Node, sign: int = 1) -> list[Term] | None:
    """A sum of products as signed products, copies and lossless casts looked through; None if it is not one."""
    node = bare(view, node)
    name = op_name(node)
    if name in ("add", "sub") and not node.kwargs and all(isinstance(a, Node) for a in node.args):
        left = terms_of(view, node.args[0], sign)
        right = terms_of(view, node.args[1], -sign if name == "sub" else sign)
        return None if left is None or right is None else left + right
    if name == "neg":
        return terms_of(view, tensor_argument(node), -sign)
    if name == "mul" and len(node.args) == 2:
        if all(isinstance(a, Node) for a in node.args):
            factors = [bare(view, a) for a in node.args]
            signs = [op_name(a) == "neg" for a in factors]
            factors = [tensor_argument(a) if s else a for a, s in zip(factors, signs, strict=True)]
            return [(-sign if sum(signs) % 2 else sign, tuple(factors))]
        if -1 in node.args:
            return terms_of(view, next(a for a in node.args if isinstance(a, Node)), -sign)
    return [(sign, (node,))]


def bare(view: GraphView, node: Node) -> Node:
    """The node of which a node is a copy, or a cast that keeps all values and the dtype in the end."""
    shape, dtype = view.shape(node), view.dtype(node)
    best = node
    if shape is None:
        return node
    for step in walk(Cursor(node, label_dims([str(i) for i in range(len(shape))], shape)), view):
        if any(op_name(passed) not in COPIES | CASTS for passed in step.passed):
            break
        if step.lossless(view) and view.dtype(step.node) == dtype:
            best = step.node
    return best


def lane_of(view: GraphView, cursor: Cursor, node: Node, kind: str, lane: int) -> Cursor | None:
    """A cursor on x if `node` is lane `lane` of x, with x's dims whole."""
    if not isinstance(node, Node) or view.shape(node) is None or view.shape(node) != view.shape(cursor.node):
        return None
    at: Cursor | None = Cursor(node, cursor.axes)
    while at is not None:
        axes = tuple(_whole_lane(dim, kind, lane) for dim in at.axes)
        if axes != at.axes:
            return settle(replace(at, axes=axes), view)
        *_, last = walk(at, view)
        # A view may hold the lane in a dim of its own; walk on until it is part of the head dim.
        at = next((s for s in walk(at, view) if any(_whole_lane(d, kind, lane) != d for d in s.axes)), None) or select(
            last, view
        )
    return None


def _whole_lane(dim: Dim, kind: str, lane: int) -> Dim:
    """[dim(D/2, stride 2), =lane(2)] or [=lane(2), dim(D/2)] as the head dim itself."""
    if len(dim) != 2:
        return dim
    pair, taken = dim if kind == "interleaved" else dim[::-1]
    fits = pair.label == "dim" and taken.label == f"={lane}" and taken.size == 2
    return (Atom("dim", pair.size * 2),) if fits and pair.stride == (2 if kind == "interleaved" else 1) else dim
