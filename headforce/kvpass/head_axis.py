"""Which axis of an attention operand is the head axis: attention itself takes batch and heads in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
from torch.fx import Node

from .axes import Atom
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .ops import argument, op_name
from .recognize import Refused
from .torch_private import input_source


def check_head_axis(view: GraphView, value: Cursor) -> None:
    """The axis that comes from the weights has to be the head axis; attention itself takes the two in any order.

    Looked at up to the input of the projection. Where that does not show the batch, the sizes have to allow it.
    """
    found = Refused("HF-LAYOUT", "heads in front of the batch", "operands whose first axis is the batch")
    step = value
    for step in _along_axes(view, value):
        if any({"batch", "dim"} <= {atom.label for atom in dim} for dim in step.axes):
            raise found
    sides = [{atom.label for dim in _end(view, side).axes for atom in dim} for side in _projected(view, step)]
    weights = [side for side in sides if "dim" in side and "seq" not in side]
    activations = [side for side in sides if side not in weights]
    known = len(weights) == len(activations) == 1
    if known and "batch" in weights[0] - activations[0]:
        raise found
    if not (known and "batch" in activations[0]) and _sized_heads_first(view, value):
        raise found


_ALONG_AXES = frozenset({"add", "sub", "mul", "div", "dropout", "layer_norm", "rms_norm"})
"""Operations whose result has the axes of the operand of its shape."""


def _along_axes(view: GraphView, cursor: Cursor) -> Iterator[Cursor]:
    """`walk`, and on through biases, gates and norms, which change values but no axes."""
    while True:
        for step in walk(cursor, view):
            yield step
        node, shape = step.node, view.shape(step.node)
        alike = [n for n in node.all_input_nodes if op_name(node) in _ALONG_AXES and view.shape(n) == shape]
        if not alike:
            return
        cursor = Cursor(alike[0], step.axes)


def _end(view: GraphView, cursor: Cursor) -> Cursor:
    *_, last = _along_axes(view, cursor)
    return last


def _projected(view: GraphView, cursor: Cursor) -> list[Cursor]:
    """The two operands of the product where a cursor stands, with the axes that they share with its result; empty for
    what is no product. An operand that is repeated along an axis does not have it."""
    given, letters, result = _terms(view, cursor.node, len(cursor.axes))
    shapes = [view.shape(operand) for operand in given]
    fits = all(shape is not None and len(shape) == len(term) for shape, term in zip(shapes, letters, strict=True))
    if not given or not fits or len(result) != len(cursor.axes):
        return []
    axes = dict(zip(result, cursor.axes, strict=True))

    def dim(letter: Any, size: sympy.Expr) -> tuple[Atom, ...]:
        return () if size == 1 else axes.get(letter, (Atom("summed", size),))

    return [
        Cursor(operand, tuple(map(dim, term, shape)))
        for operand, term, shape in zip(given, letters, shapes, strict=True)
    ]


def _terms(view: GraphView, node: Node, rank: int) -> tuple[list[Any], list[Sequence[Any]], Sequence[Any]]:
    """Both operands of a product, a letter for each of their dims, and those of its result. Unlike `product_of`, of
    operands that differ in their number of dims and share any axes."""
    name = op_name(node)
    lead, summed = range(rank - 1), "summed"
    if name == "einsum":
        operands = list(node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:])
        terms, _, result = str(node.args[0]).replace(" ", "").partition("->")
        if len(operands) == 2 and result and "." not in terms:
            return operands, list(terms.split(",")), result
    if name == "linear":
        operands = [argument(node, 0, "input"), argument(node, 1, "weight")]
        return operands, [(*lead, summed), (rank - 1, summed)], range(rank)
    if name in ("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"):
        first = 1 if name.startswith(("add", "badd")) else 0
        operands = [argument(node, first, "input"), argument(node, first + 1, "other" if "matmul" in name else "mat2")]
        ranks = [len(view.shape(operand) or ()) for operand in operands]
        if min(ranks) >= 2:
            left, right = (range(rank - n, rank - 2) for n in ranks)
            return operands, [(*left, rank - 2, summed), (*right, summed, rank - 1)], range(rank)
    return [], [], ()


def _sized_heads_first(view: GraphView, value: Cursor) -> bool:
    """Whether the heads have the size of a batch that the graph is given, and the batch has not."""
    sizes = dict(zip(value.layout or (), view.shape(value.node) or (), strict=True))
    given = []
    for node in view.placeholders:
        tensor, source = view.tensor(node), input_source(node) or "_parameters"
        own = "_parameters" in source or "_buffers" in source
        if tensor is not None and tensor.is_floating_point() and tensor.dim() in (3, 5) and not own:
            given.append(view.shape(node)[0])
    batch, heads = (any(view.facts.equal(sizes[axis], size) for size in given) for axis in ("batch", "head"))
    return heads and not batch
