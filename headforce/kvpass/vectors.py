"""Short integer vectors that a graph makes of sizes: the lengths and the places of sequences in one packed tensor."""

from __future__ import annotations

from itertools import accumulate

import sympy
from torch.fx import Node

from .graph_view import GraphView
from .normal_form import CASTS, COPIES
from .ops import argument, op_name, sequence_argument, tensor_argument


def vector(view: GraphView, node: Node) -> list[sympy.Expr] | None:
    """The numbers in a vector, as expressions; None if they are not all sizes of the graph.

    Accepts `torch.tensor([n, m])`, zeros, `full`, `arange(a, b, step)`, `cat`, `cumsum`, casts and copies.
    """
    name = op_name(node) or getattr(node.target, "__name__", "")
    if view.writers(node) or node.op == "placeholder":
        return None
    if name in COPIES | CASTS | {"int", "long"}:
        source = tensor_argument(node)
        return None if source is None else vector(view, source)
    if name == "tensor":
        given = node.args[0]
        return _known([view.expr(item) for item in given]) if isinstance(given, (tuple, list)) else None
    if name in ("zeros", "new_zeros", "full", "new_full"):
        length = (view.shape(node) or (sympy.S.Zero,))[0]
        fill = argument(node, 2 if name == "new_full" else 1, "fill_value") if "full" in name else 0
        value = view.expr(fill)
        return [value] * int(length) if length.is_Integer and value is not None else None
    if name == "arange":
        bounds = _known([view.expr(a) for a in node.args])
        if bounds is None or {"start", "end", "step"} & set(node.kwargs):
            return None
        start, stop, step = (*((sympy.S.Zero, *bounds) if len(bounds) == 1 else bounds), sympy.S.One)[:3]
        count = sympy.ceiling(sympy.cancel((stop - start) / step))
        return [sympy.expand(start + i * step) for i in range(int(count))] if count.is_Integer else None
    if name == "cat":
        parts = [vector(view, part) for part in sequence_argument(node)]
        return None if not parts or None in parts else [item for part in parts for item in part or ()]
    if name == "cumsum":
        source = tensor_argument(node)
        items = None if source is None else vector(view, source)
        return None if items is None else [sympy.expand(item) for item in accumulate(items)]
    return None


def _known(items: list[sympy.Expr | None]) -> list[sympy.Expr] | None:
    return None if None in items else [item for item in items if item is not None]
