"""Attention calls: `F.scaled_dot_product_attention`, under its public name or as the builtin that Dynamo writes.

Accepted:

    F.scaled_dot_product_attention(q, k, v)                                   # [B, H, S, D]
    F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=s, enable_gqa=True)

Counter-examples and their codes: operands that are not four-dimensional (HF-LAYOUT), dropout (HF-DROPOUT), gradients
(HF-GRAD), a scale that is not a number in the graph (HF-ATTENTION-FORM). Masks are classified in `mask.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
from torch.fx import Node

from .. import torch_private
from ..axes import label_dims
from ..graph_view import GraphView
from ..normal_form import LABELS, Cursor
from ..ops import argument
from ..symbolic import to_number
from .base import AttentionCall, Refused, recognizer


@recognizer("attention", order=10)
def scaled_dot_product_attention(view: GraphView, node: Node) -> AttentionCall | None:
    """Recognise SDPA; returns the call with operands labelled `[batch, head, seq, dim]`."""
    if node.op != "call_function" or node.target not in torch_private.SDPA_TARGETS:
        return None
    given = tuple(argument(node, i, name) for i, name in enumerate(("query", "key", "value")))
    q, k, v = operands(view, given, LABELS)
    return AttentionCall(
        node=node,
        layout=LABELS,
        q=q,
        k=k,
        v=v,
        scale=scale_of(view, argument(node, 6, "scale"), q),
        mask=argument(node, 3, "attn_mask"),
        dropout=argument(node, 4, "dropout_p", 0.0),
        causal=bool(argument(node, 5, "is_causal", False)),
    )


def operands(view: GraphView, given: Sequence[Any], layout: tuple[str, ...]) -> list[Cursor]:
    """Cursors on query, key and value of one layout. Raises HF-LAYOUT unless they have four dims."""
    shapes = [view.shape(x) for x in given]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        raise Refused("HF-LAYOUT", f"operands of shape {_show(shapes)}", f"query, key and value {list(layout)}")
    # SDPA on CPU accepts K and V that differ in rows and reads what it likes; a guard on their sizes settles it.
    rows = layout.index("seq")
    view.ensure(sympy.Eq(shapes[1][rows], shapes[2][rows]))
    return [Cursor(x, label_dims(layout, shape)) for x, shape in zip(given, shapes, strict=True)]


def scale_of(view: GraphView, scale: Any, query: Cursor) -> float:
    """A scale that is given as a number, or that of the width of a head."""
    if scale is None:
        width = view.shape(query.node)[-1]
        if not width.is_Integer:
            raise Refused("HF-LAYOUT", f"a head dim of {width}", "a head dim known when compiling")
        scale = int(width) ** -0.5
    number = to_number(scale)
    if number is None:
        raise Refused("HF-ATTENTION-FORM", f"a scale computed in the graph ({scale})", "a scale that is a number")
    return float(number)


def check_call(view: GraphView, call: AttentionCall) -> None:
    """Raise `Refused` for what no form of attention may have: dropout, gradients."""
    if to_number(call.dropout) != 0:
        raise Refused("HF-DROPOUT", f"dropout_p={call.dropout}", "dropout_p=0.0 (model.eval())")
    tensor = view.tensor(call.node)
    if tensor is None or tensor.requires_grad:
        raise Refused("HF-GRAD", "an attention result that requires a gradient", "torch.no_grad() or inference_mode()")


def _show(shapes: list) -> str:
    return ", ".join("?" if s is None else str(list(s)) for s in shapes)
