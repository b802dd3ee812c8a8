"""Values of nodes that are built from constants alone: masks, tables of blocks, lengths of sequences.

The nodes behind a value, and whatever writes to them in place, are run again on real tensors, in their order.
Only operations whose result depends on nothing but their arguments are run; a graph input ends the search.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from .graph_view import GraphView
from .ops import op_name, words
from .symbolic import to_number
from .torch_private import VMAP_FUNCTIONS, VMAP_NESTING, real_tensors, vmap_levels

_MAX_ELEMENTS = 1 << 24
_PURE = words("""
    abs add and arange argsort bfloat16 bool cat clamp clone contiguous cumsum detach div double eq expand fill
    flatten flip float floor floor_divide floordiv full full_like ge getitem gt half index int invert le logical_and
    logical_not logical_or long lt masked_fill maximum minimum mod mul ne neg new_full new_ones new_zeros not ones
    ones_like or outer pad permute remainder repeat repeat_interleave reshape rsub setitem squeeze stack sub sum t
    tensor to transpose tril triu truediv type type_as unflatten unsqueeze view where xor zeros zeros_like
""")


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
