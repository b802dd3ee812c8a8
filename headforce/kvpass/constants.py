"""Values of nodes that are built from constants alone: masks, tables of blocks, lengths of sequences.

The nodes behind a value, and whatever writes to them in place, are run again on real tensors, in their order.
Only operations whose result depends on nothing but their arguments are run; a graph input ends the search.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from .axes import label_dims
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .ops import argument, op_name, words
from .symbolic import to_number
from .torch_private import VMAP_FUNCTIONS, VMAP_NESTING, real_tensors, vmap_levels

_MAX_ELEMENTS = 1 << 24
_PURE = words("""
    abs add and arange argsort bfloat16 bool cat clamp clone contiguous cumsum detach div double eq exp expand fill
    flatten flip float floor floor_divide floordiv full full_like ge getitem gt half index int invert le log logical_and
    logical_not logical_or long lt masked_fill maximum minimum mod mul ne neg new_full new_ones new_zeros not ones
    ones_like or outer pad permute pow reciprocal remainder repeat repeat_interleave reshape rsub setitem squeeze stack
    sub sum t tensor to transpose tril triu truediv type type_as unflatten unsqueeze view where xor zeros zeros_like
""")

_ELEMENTWISE = words("add and invert logical_and logical_not logical_or masked_fill mul neg or sub where")


def constant(view: GraphView, node: Any, at: Node | None = None) -> Any | None:
    """What `node` holds when `at` runs (by default when it is made): a tensor or a number, or None if it may vary."""
    if not isinstance(node, Node):
        return node if isinstance(node, (int, float, bool)) else None
    number = to_number(node)
    if number is not None:
        return number
    limit = view.order[at if at is not None else node] + (at is None)
    known = view.constants.setdefault(limit, {})
    if node not in known:
        needed = _behind(view, node, limit)
        known[node] = None if needed is None else _run(view, node, needed)
    return known[node]


def uniform(view: GraphView, node: Any) -> torch.Tensor | None:
    """The one value that every place of a tensor has, whatever its size, as a tensor without dims; else None.

    Views and elementwise operations of such tensors are such tensors.
    """
    number = to_number(node) if isinstance(node, Node) else node
    if isinstance(number, (int, float)):
        return torch.tensor(number)
    shape = view.shape(node)
    if shape is None:
        return None
    with real_tensors():
        for cursor in walk(Cursor(node, label_dims([str(i) for i in range(len(shape))], shape)), view):
            if view.writers(cursor.node):
                return None
            last = cursor
        value = _made(view, last.node)
        for dtype in (*last.casts, view.dtype(node)) if value is not None else ():
            value = value.to(dtype)
    return value


def _made(view: GraphView, node: Node) -> torch.Tensor | None:
    """The value of a tensor that is filled with one, or that an elementwise operation makes of such tensors."""
    name, dtype = op_name(node) or getattr(node.target, "__name__", ""), view.dtype(node)
    if name in ("ones", "ones_like", "new_ones", "zeros", "zeros_like", "new_zeros"):
        return torch.full((), "ones" in name, dtype=dtype)
    if name in ("full", "full_like", "new_full"):
        fill = uniform(view, argument(node, 2 if name == "new_full" else 1, "fill_value"))
        return None if fill is None else fill.to(dtype)
    if name.strip("_") not in _ELEMENTWISE or node.kwargs or node.op not in ("call_function", "call_method"):
        return None
    operands = [uniform(view, operand) for operand in node.args]
    if any(operand is None for operand in operands):
        return None
    if name == "masked_fill":
        kept, hidden, fill = operands
        return torch.where(hidden, fill.to(kept.dtype), kept)
    if node.op == "call_method":
        return getattr(operands[0], str(node.target))(*operands[1:]).to(dtype)
    return node.target(*operands).to(dtype)  # type: ignore[operator]


def _behind(view: GraphView, start: Node, limit: int) -> list[Node] | None:
    """The nodes to run, in order; None if one of them is not constant."""
    found: set[Node] = set()
    queue, batched = [start], False
    while queue:
        node = queue.pop()
        if node in found or to_number(node) is not None:
            continue
        if not _runs(view, node):
            return None
        found.add(node)
        batched |= node.target in VMAP_FUNCTIONS
        queue += node.all_input_nodes
        queue += [writer for writer in view.writers(node) if view.order[writer] < limit]
    if batched:
        found.update(n for n in view.nodes[:limit] if n.target in VMAP_NESTING)
    return sorted(found, key=view.order.__getitem__)


def _runs(view: GraphView, node: Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in VMAP_FUNCTIONS:
        return True
    name = op_name(node) or getattr(node.target, "__name__", "")
    shape = view.shape(node)
    small = shape is None or (all(s.is_Integer for s in shape) and math.prod(map(int, shape)) <= _MAX_ELEMENTS)
    return small and name.strip("_") in _PURE


def _run(view: GraphView, wanted: Node, nodes: list[Node]) -> Any | None:
    known: dict[Node, Any] = {}

    def value(node: Node) -> Any:
        return known[node] if node in known else to_number(node)

    with real_tensors(), torch.no_grad(), vmap_levels():
        try:
            for node in nodes:
                args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), value)
                kwargs = {name: given for name, given in kwargs.items() if name != "device"}
                args = tuple(a for a in args if not isinstance(a, torch.device))
                if node.op == "call_method":
                    known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
                else:
                    known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return None  # an argument that only makes sense on the model's device
    result = known[wanted]
    return result if isinstance(result, (torch.Tensor, int, float, bool)) else None
