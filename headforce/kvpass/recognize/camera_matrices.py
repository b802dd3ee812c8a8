"""Camera matrices in attention (PRoPE, arXiv 2507.10496): recognised, and refused with HF-PROPE.

    q = torch.einsum("bcij,bncpj->bncpi", p.mT, q);  k, v = (einsum(..., p_inv, x) for x in (k, v))
    out = torch.einsum(..., p, attention(q, k, v))

A matrix of each frame multiplies its queries, keys and values, often a part of their channels, and the result is
multiplied back. Positions then lie in the matrices besides RoPE, so moving a key to another frame would be wrong.
Counter-examples, which are none: a projection, also one with a weight for each head; a scale for each channel.
"""

from __future__ import annotations

from torch.fx import Node

from ..graph_view import GraphView
from ..ops import argument, op_name
from ..products import PRODUCTS
from ..sources import behind
from .base import AttentionCall, Excluded, Refused, recognizer


@recognizer("exclude", order=5)
def camera_matrices(view: GraphView, call: AttentionCall) -> Excluded | None:
    """Refuse attention whose query is multiplied by matrices that differ along a batch of rows."""
    for node in behind(view, call.q.node)[0]:
        if op_name(node) in PRODUCTS and _batched(view, node):
            raise Refused(
                "HF-PROPE",
                f"a query multiplied by matrices of its rows in {node.name}",
                "positions that lie in RoPE alone",
            )
    return None


def _batched(view: GraphView, node: Node) -> bool:
    """Whether a product goes over axes that both operands have, as no projection by a weight does."""
    if op_name(node) == "einsum":
        equation = argument(node, 0, "equation")
        if not isinstance(equation, str) or "->" not in equation:
            return True
        terms, result = equation.replace(" ", "").split("->")
        first, _, second = terms.partition(",")
        return bool((set(first) & set(second) & set(result)) - {"."}) or ("..." in first and "..." in second)
    shapes = [view.shape(operand) for operand in node.all_input_nodes]
    return len(shapes) > 1 and all(shape is not None and len(shape) > 2 for shape in shapes)
