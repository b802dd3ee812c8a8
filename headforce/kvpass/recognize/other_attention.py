"""Attention that is seen and never rewritten. It is refused by name, so that it is never missed silently.

    flex_attention_backward                                                   # higher-order operator
    mylib::sageattn, sageattention::qk_int8_sv_f16_accum_f32_attn, ...        # custom operators
    aten::_scaled_dot_product_flash_attention, aten::_flash_attention_forward, ...           # torch's own kernels
    torch.nn.functional.multi_head_attention_forward                          # functions that Dynamo keeps whole

An operator or function counts as attention if its name says so and it takes three tensors of three or more dims. What
it computes is not in the graph: SageAttention quantises queries and keys, others pick tokens of their own. A recogniser
for one of them, with a lower `order`, takes the call before this file does. Counter-example: an operator called
`attention_mask` that takes no query, key and value.
"""

from __future__ import annotations

from torch.fx import Node

from ..graph_view import GraphView
from ..torch_private import is_higher_order
from .base import AttentionCall, Refused, recognizer
from .flash_attention import operator_name

NAMESPACES = frozenset({"flash_attn", "flash_attn_3", "flashattn", "magi_attention", "sageattention", "xformers_flash"})
"""Namespaces of `torch.library` under which nothing but attention is registered."""
WORDS = ("attn", "attention")
OWN = ("headforce", "prim")
HIGHER_ORDER = frozenset({"flex_attention_backward"})


@recognizer("attention", order=90)
def known_kernels(view: GraphView, node: Node) -> AttentionCall | None:
    """Refuse calls of attention kernels that have no recogniser."""
    if node.op == "call_function" and is_higher_order(node.target) and node.target.name() in HIGHER_ORDER:
        raise Refused("HF-ATTENTION-FORM", f"the operator {node.target.name()}", "scaled_dot_product_attention")
    name = operator_name(node)
    namespace, _, own = name.partition("::")
    kind = "operator" if name else "function"
    if not name and node.op == "call_function" and not is_higher_order(node.target):
        name = own = str(getattr(node.target, "__name__", ""))
    if not name or namespace in OWN:
        return None
    named = namespace in NAMESPACES or any(word in own.lower() for word in WORDS)
    if named and sum(len(view.shape(n) or ()) >= 3 for n in node.all_input_nodes) >= 3:
        kind = f"custom {kind}" if kind == "operator" and namespace != "aten" else kind
        raise Refused("HF-ATTENTION-FORM", f"the {kind} {name}", "scaled_dot_product_attention")
    return None
