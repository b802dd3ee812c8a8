"""Looking through what does not change values: views, transposes, casts, copies, reshapes, expands.

A `Cursor` stands on a node and remembers how the value on which the search began follows from it: which axis each
dim is, the casts on the way, and a constant factor. `peel` moves one step back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy
import torch
from torch.fx import Node

from .axes import ONE, Axes, names, regroup
from .graph_view import GraphView
from .indexing import full_index, permutation
from .ops import argument, op_name, sequence_argument, tensor_argument
from .symbolic import to_number

LABELS = ("batch", "head", "seq", "dim")
CASTS = frozenset({"to", "type", "type_as", "float", "half", "bfloat16", "double", "cfloat", "cdouble"})
COPIES = frozenset({"clone", "contiguous", "detach", "alias"})
RESHAPES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"}
)
PERMUTES = frozenset({"transpose", "permute", "movedim", "t", "getattr"})
EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})


@dataclass(frozen=True)
class Cursor:
    """A node, seen from a later value.

    Attributes:
        node: where the cursor stands.
        axes: what each dim of `node` is, in the axes of the value where the search began.
        casts: the dtypes that the value takes between here and there, earliest first.
        factor: a constant that the value is multiplied with on the way.
        passed: the nodes looked through, nearest to the start first.
    """

    node: Node
    axes: Axes
    casts: tuple[torch.dtype, ...] = ()
    factor: float = 1.0
    passed: tuple[Node, ...] = ()

    def to(self, node: Node, axes: Axes, view: GraphView) -> Cursor:
        """The cursor moved back to `node`, an operand of the node where it stands."""
        here, there = view.dtype(self.node), view.dtype(node)
        casts = (here, *self.casts) if here is not None and here != there else self.casts
        return replace(self, node=node, axes=axes, casts=casts, passed=(*self.passed, self.node))

    def lossless(self, view: GraphView) -> bool:
        """Whether every cast on the way keeps all values (bf16 to fp32 and back does, fp64 to bf16 does not)."""
        dtype = view.dtype(self.node)
        return not self.casts or (dtype is not None and all(torch.promote_types(dtype, c) == c for c in self.casts))

    def one_cast(self, view: GraphView) -> bool:
        """Whether all casts on the way amount to one cast to the last dtype (bf16 to fp32 to bf16 does)."""
        return not self.casts or replace(self, casts=self.casts[:-1]).lossless(view)

    @property
    def layout(self) -> tuple[str, ...] | None:
        """One of `LABELS` for each dim if there are four plain dims, else None."""
        return names(self.axes, LABELS)


def peel(cursor: Cursor, view: GraphView, *, factors: bool = False) -> Cursor | None:
    """One step back through an operation that keeps values, or None.

    Never steps to a tensor that is written in place later: its value then depends on when it is read. Graph inputs are
    the exception (caches); who stops at one looks at its writes.

    Accepts, in any spelling: transpose, permute, movedim, `.mT`; view, reshape, flatten, unflatten, squeeze,
    unsqueeze, indexing with None, full slices and `narrow`; contiguous, clone, detach; dtype casts; expand and
    repeat_interleave by a constant; `cat` or `stack` of one tensor (or of one that is not empty); dropout that does
    nothing. With `factors`, also multiplication or division by a Python number.
    """
    step = step_back(cursor, view, factors=factors)
    if step is None or (view.written_after(step.node) and view.root(step.node).op != "placeholder"):
        return None
    return step


def step_back(cursor: Cursor, view: GraphView, *, factors: bool = False) -> Cursor | None:
    """`peel` without the rule about tensors written in place, for who has looked at the writes."""
    node, name = cursor.node, op_name(cursor.node)
    source = tensor_argument(node)
    if name in ("cat", "stack"):
        return _joined(cursor, view)
    if factors and name in ("mul", "div"):
        return _scaled(cursor, view)
    if source is None:
        return None
    before = view.shape(source)
    if before is None or view.shape(node) is None:
        return None
    axes: Axes | None = None
    if name in COPIES or (name in CASTS and before == view.shape(node)) or (name == "dropout" and _idle(node)):
        axes = cursor.axes
    elif name == "view" and any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
        return None  # reinterprets the bits
    elif name in RESHAPES:
        axes = regroup(cursor.axes, before, view.facts)
    elif name in PERMUTES:
        order = permutation(node, len(before))
        if order is not None:
            moved = sorted(range(len(order)), key=order.__getitem__)
            axes = tuple(cursor.axes[i] for i in moved)
    elif name in EXPANDS:
        axes = _unexpanded(cursor.axes, before, view)
    elif name == "repeat_interleave":
        axes = _uninterleaved(cursor, before, view)
    elif name == "getitem":
        axes = _unindexed(cursor, before, view)
    elif name == "narrow":  # its length is fixed by its shape
        axes = cursor.axes if before == view.shape(node) else None
    return None if axes is None else cursor.to(source, axes, view)


def walk(cursor: Cursor | None, view: GraphView, *, factors: bool = False) -> Iterator[Cursor]:
    """The cursor and every step back from it."""
    while cursor is not None:
        yield cursor
        cursor = peel(cursor, view, factors=factors)


def settle(cursor: Cursor, view: GraphView, *, factors: bool = False) -> Cursor:
    """The earliest node of the same values whose four dims are batch, head, seq and dim in some order.

    With `factors`, the values may differ by the constant `factor` of the result.

    Stops before a cast that loses bits, before anything that is not a permutation of the four axes, and before a tensor
    that is written in place later.
    """
    best = cursor
    for step in walk(cursor, view, factors=factors):
        if step is not cursor and view.written_after(step.node):
            break
        if step.lossless(view) and step.layout is not None and all(a.stride == 1 for dim in step.axes for a in dim):
            best = step
    return best


def _unindexed(cursor: Cursor, before: tuple[sympy.Expr, ...], view: GraphView) -> Axes | None:
    index = cursor.node.args[1]
    if isinstance(cursor.node.args[0], Node) and full_index(index, before, view):
        return regroup(cursor.axes, before, view.facts)
    if isinstance(index, int) and before[0] == 1:  # x[0] of a batch of one
        return ((), *cursor.axes)
    items = index if isinstance(index, tuple) else ()
    if items and isinstance(items[0], int) and before[0] == 1 and full_index(items[1:], before[1:], view):
        return regroup(((), *cursor.axes), before, view.facts)
    return None


def _joined(cursor: Cursor, view: GraphView) -> Cursor | None:
    """`cat` of one tensor and empty ones, or `stack` of one."""
    parts = sequence_argument(cursor.node)
    dim = argument(cursor.node, 1, "dim", 0)
    if not parts or not isinstance(dim, int):
        return None
    if op_name(cursor.node) == "stack":
        before = view.shape(parts[0])
        axes = regroup(cursor.axes, before, view.facts) if len(parts) == 1 and before is not None else None
        return None if axes is None else cursor.to(parts[0], axes, view)
    shapes = [view.shape(part) for part in parts]
    filled = [p for p, s in zip(parts, shapes, strict=True) if s is not None and s[dim % len(s)] != 0]
    return cursor.to(filled[0], cursor.axes, view) if len(filled) == 1 and None not in shapes else None


def _scaled(cursor: Cursor, view: GraphView) -> Cursor | None:
    first, second = argument(cursor.node, 0, "input"), argument(cursor.node, 1, "other")
    name = op_name(cursor.node)
    tensor, other = (first, second) if view.tensor(first) is not None else (second, first)
    number = to_number(other) if view.tensor(other) is None else None
    rounds = argument(cursor.node, 2, "rounding_mode") is not None
    if view.tensor(tensor) is None or not number or (name == "div" and tensor is not first) or rounds:
        return None
    factor = cursor.factor * number if name == "mul" else cursor.factor / number
    return replace(cursor.to(tensor, cursor.axes, view), factor=factor)


def _unexpanded(axes: Axes, before: tuple[sympy.Expr, ...], view: GraphView) -> Axes | None:
    kept = axes[len(axes) - len(before) :]
    return tuple(() if size == ONE else dim for dim, size in zip(kept, before, strict=True))


def _uninterleaved(cursor: Cursor, before: tuple[sympy.Expr, ...], view: GraphView) -> Axes | None:
    repeats, dim = argument(cursor.node, 1, "repeats"), argument(cursor.node, 2, "dim")
    if dim is None and len(before) == 1:  # without a dim, what is repeated is flat
        dim = 0
    if not isinstance(repeats, int) or not isinstance(dim, int):
        return None
    dim %= len(before)
    pair = regroup((cursor.axes[dim],), (before[dim], sympy.Integer(repeats)), view.facts)
    return None if pair is None else (*cursor.axes[:dim], pair[0], *cursor.axes[dim + 1 :])


def _idle(node: Node) -> bool:
    probability = argument(node, 1, "p", 0.5)
    training = argument(node, 2, "training", argument(node, 2, "train", True))
    return to_number(probability) == 0 or training is False
