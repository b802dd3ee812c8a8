"""FlashAttention's operators, under whatever Python function they are called.

Accepted, as flash-attn 2.7 to 2.8 (namespace `flash_attn`) and flash-attn-3 (`flash_attn_3`) register them:

    flash_attn::_flash_attn_forward(q, k, v, ...)                             # [B, S, H, D]
    flash_attn::_flash_attn_varlen_forward(q, k, v, cu_seqlens_q, cu_seqlens_k, ...)        # [B * S, H, D]
    flash_attn_3::_flash_attn_forward(q, k, v, ...)                           # either, by its arguments

The boundaries of sequences have to be made in the graph, from sizes, and all sequences have to be of one length. K/V
heads may be fewer than heads. Causal masks and windows are aligned to the last key.

Counter-examples: boundaries that are a graph input, or sequences of different lengths (HF-LAYOUT); soft caps and ALiBi
slopes (HF-SCOREMOD); paged, padded or partly used caches, and keys appended or rotated by the operator
(HF-ATTENTION-FORM); a log-sum-exp that is used (HF-ESCAPE). Versions before 2.7 declare their operands as changed and
are refused by name.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Node

from ..axes import Atom, Dim, label_dims
from ..graph_view import GraphView
from ..normal_form import Cursor
from ..ops import op_name, words
from ..site import Mask
from ..symbolic import to_number
from ..vectors import vector
from .attention import operands, scale_of
from .base import AttentionCall, Refused, recognizer

LAYOUT = ("batch", "seq", "head", "dim")
_OPERATORS = frozenset(
    {
        "flash_attn::_flash_attn_forward",
        "flash_attn::_flash_attn_varlen_forward",
        "flash_attn_3::_flash_attn_forward",
    }
)
_PLAIN = words("""
    q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal window_size_left
    window_size_right softcap alibi_slopes return_softmax zero_tensors num_splits pack_gqa sm_margin rotary_interleaved
    deterministic scheduler_metadata
""")
"""Arguments whose meaning is known, or that have none for the result; every other one must be left out."""


@recognizer("attention", order=30)
def flash_attention(view: GraphView, node: Node) -> AttentionCall | None:
    """Recognise the operators by name; the first result is the attention."""
    if operator_name(node) not in _OPERATORS:
        return None
    given = _arguments(node)
    other = [name for name, value in given.items() if name not in _PLAIN and value not in (None, 0, False)]
    if other:
        raise Refused("HF-ATTENTION-FORM", f"{operator_name(node)} with {', '.join(other)}", "plain q, k and v")
    if to_number(given.get("softcap", 0.0)) != 0 or given.get("alibi_slopes") is not None:
        raise Refused("HF-SCOREMOD", f"{operator_name(node)} with a soft cap or slopes", "scores as they are")
    results = [user for user in view.users(node) if op_name(user) == "getitem" and user.args[1] == 0]
    if len(results) != 1 or results != view.users(node):
        raise Refused("HF-ESCAPE", f"{node.name} read for more than its output", "a call whose output alone is used")
    packed = given.get("cu_seqlens_q") is not None
    q, k, v = _packed(view, given) if packed else operands(view, [given[n] for n in "qkv"], LAYOUT)
    return AttentionCall(
        node=results[0],
        layout=LAYOUT,
        q=q,
        k=k,
        v=v,
        scale=scale_of(view, given.get("softmax_scale"), q),
        mask=_mask(given),
        dropout=given.get("dropout_p", 0.0),
        operator=node,
        folded=0 if packed else None,
    )


def operator_name(node: Node) -> str:
    """The qualified name of a custom operator, such as `flash_attn::_flash_attn_forward`; empty for other nodes."""
    target = node.target
    if node.op != "call_function":
        return ""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name)
    return str(target._qualified_op_name) if isinstance(target, torch._ops.OpOverloadPacket) else ""


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments by their names in the schema, defaults included."""
    target: Any = node.target
    schema = target._schema if isinstance(target, torch._ops.OpOverload) else target.default._schema
    known = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    known.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return {**known, **node.kwargs}


def _mask(given: dict[str, Any]) -> Mask:
    left, right = (to_number(given.get(f"window_size_{side}", -1)) for side in ("left", "right"))
    if left is None or right is None:
        raise Refused("HF-MASK", "a window computed in the graph", "a window that is a number")
    if given.get("causal"):
        right = 0
    if left < 0 and right < 0:
        return Mask("none")
    if right != 0:
        raise Refused("HF-MASK", f"a window of {left} rows before and {right} behind", "no window, or a causal one")
    return Mask("causal") if left < 0 else Mask("sliding_window", int(left) + 1)


def _packed(view: GraphView, given: dict[str, Any]) -> list[Cursor]:
    """Cursors on operands [B * S, H, D]."""
    cursors = []
    for name, side in zip("qkv", "qkk", strict=True):
        shape = view.shape(given[name])
        bounds = given.get(f"cu_seqlens_{side}")
        places = vector(view, bounds) if isinstance(bounds, Node) else None
        if shape is None or len(shape) != 3 or places is None or len(places) < 2:
            raise Refused("HF-LAYOUT", f"sequences of {name} between places that vary", "lengths made from sizes")
        length, count = places[1], len(places) - 1
        even = all(view.facts.equal(place, i * length) for i, place in enumerate(places))
        if not even or not view.facts.equal(places[-1], shape[0]):
            raise Refused("HF-LAYOUT", f"sequences of {name} between {places}", "sequences of one length")
        batch: Dim = (Atom("batch", sympy.Integer(count)),) if count > 1 else ()
        rows: Dim = () if length == 1 else (Atom("seq", length),)
        cursors.append(Cursor(given[name], ((*batch, *rows), *label_dims(("head", "dim"), shape[1:]))))
    return cursors
