"""Attention that is seen but not yet rewritten. It is refused by name, so that it is never missed silently.

    flex_attention_backward                                                   # higher-order operator
    torch.ops.flash_attn._flash_attn_varlen_forward(...)                      # registered kernels

A recogniser for one of them, with a lower `order`, takes the call before this file does.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from ..graph_view import GraphView
from ..torch_private import is_higher_order
from .base import AttentionCall, Refused, recognizer

NAMESPACES = frozenset(
    {
        "flash_attn",
        "flash_attn_3",
        "_flash_attn_forward",
        "sageattention",
        "xformers",
        "xformers_flash",
        "magi_attention",
    }
)
"""Namespaces of `torch.library` under which attention kernels are registered."""
HIGHER_ORDER = frozenset({"flex_attention_backward"})


@recognizer("attention", order=90)
def known_kernels(view: GraphView, node: Node) -> AttentionCall | None:
    """Refuse calls of attention kernels that have no recogniser."""
    target = node.target
    if node.op != "call_function":
        return None
    if is_higher_order(target) and target.name() in HIGHER_ORDER:
        raise Refused("HF-ATTENTION-FORM", f"the higher-order operator {target.name()}", "scaled_dot_product_attention")
    if isinstance(target, torch._ops.OpOverload) and target.namespace in NAMESPACES:
        raise Refused("HF-ATTENTION-FORM", f"the custom operator {target.name()}", "scaled_dot_product_attention")
    return None
