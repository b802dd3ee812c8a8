"""Masks, by proof. A mask that is not of a known class makes the site refused (HF-MASK).

    attn_mask=None                                            "none"
    torch.ones(q, k, dtype=torch.bool), torch.zeros(q, k)     "all_true" (any size, also symbolic; zeros are added)
    is_causal=True with as many keys as queries               "causal"
    torch.ones(q, k, dtype=torch.bool).tril(k - q)            "causal": built from constants, computed here and compared
    arange(k)[None] // b <= (arange(q)[:, None] + k - q) // b "block_causal" with block b

Counter-examples, all refused: a mask that is a graph input or computed from one; a mask written in place after it
was made; `is_causal=True` over a history (it aligns to the first key, so it would hide the history).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..axes import label_dims
from ..graph_view import GraphView
from ..normal_form import Cursor, walk
from ..ops import argument, op_name, words
from ..site import Mask
from ..torch_private import real_tensors
from .base import AttentionCall, recognizer

_MAX_ELEMENTS = 1 << 24
_CONSTANT_OPS = words("""
    abs add and arange bfloat16 bool cat clamp clone contiguous div double eq expand flatten flip float floordiv full
    full_like ge getitem gt half int le logical_and logical_not logical_or long lt masked_fill mod mul ne neg not ones
    ones_like or outer permute repeat repeat_interleave reshape squeeze stack sub t to transpose tril triu type type_as
    unflatten unsqueeze view where zeros zeros_like
""")


@recognizer("mask", order=10)
def constant_mask(view: GraphView, call: AttentionCall) -> Mask | None:
    """The class of a mask, or None if it is not proved."""
    if call.mask is None:
        if not call.causal:
            return Mask("none")
        rows, keys = (view.shape(c.node)[2] for c in (call.q, call.k))
        return Mask("causal") if view.facts.equal(rows, keys) else None
    if call.causal or not isinstance(call.mask, Node) or view.shape(call.mask) is None:
        return None
    if _uniform(view, call.mask):
        return Mask("all_true")
    value = _evaluate(view, call.mask, {})
    return None if value is None else classify(value)


def classify(mask: torch.Tensor) -> Mask | None:
    """The class of a boolean (True: read) or added (0: read, -inf: not) mask of shape `[..., queries, keys]`."""
    if mask.dim() < 2:
        return None
    keep = mask if mask.dtype == torch.bool else mask == 0
    if mask.dtype != torch.bool and not bool((keep | (mask == -torch.inf)).all()):
        return None
    keep = keep.reshape(-1, *keep.shape[-2:])
    if not bool((keep == keep[:1]).all()):
        return None  # batch rows or heads differ
    keep = keep[0]
    if bool(keep.all()):
        return Mask("all_true")
    rows, keys = keep.shape
    history = keys - rows
    row, key = torch.arange(rows)[:, None], torch.arange(keys)[None]
    if history >= 0 and torch.equal(keep, key <= row + history):
        return Mask("causal")
    block = int(keep[0].sum()) - history
    if history >= 0 and block > 0 and torch.equal(keep, key < history + (row // block + 1) * block):
        return Mask("block_causal", block)
    return None


def _uniform(view: GraphView, mask: Node) -> bool:
    """Whether the mask is one constant that hides nothing, whatever its size."""
    shape = view.shape(mask)
    for cursor in walk(Cursor(mask, label_dims([str(i) for i in range(len(shape))], shape)), view):
        if view.writers(cursor.node):
            return False
        name, boolean = op_name(cursor.node), view.dtype(mask) == torch.bool
        if name in ("full", "full_like", "new_full"):
            fill = argument(cursor.node, 2 if name == "new_full" else 1, "fill_value")
            return isinstance(fill, (int, float)) and bool(fill) == boolean and torch.bool not in cursor.casts[:-1]
        if name in ("ones", "ones_like", "new_ones"):
            return boolean
        if name in ("zeros", "zeros_like", "new_zeros"):
            return not boolean and torch.bool not in (view.dtype(cursor.node), *cursor.casts)
    return False


def _evaluate(view: GraphView, node: Node, known: dict[Node, Any]) -> Any | None:
    """The value of a node that is built from constants alone, or None."""
    if node in known:
        return known[node]
    value = node.meta.get("example_value")
    if isinstance(value, (int, float, bool)):
        return value
    shape = view.shape(node)
    if shape is None or not all(s.is_Integer for s in shape) or _size(shape) > _MAX_ELEMENTS or view.writers(node):
        return None
    name = op_name(node) or getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name.strip("_") not in _CONSTANT_OPS:
        return None
    operands = {n: _evaluate(view, n, known) for n in node.all_input_nodes}
    if any(v is None for v in operands.values()):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), operands.__getitem__)
    kwargs = {k: v for k, v in kwargs.items() if k != "device"}
    args = tuple(a for a in args if not isinstance(a, torch.device))
    with real_tensors(), torch.no_grad():
        try:
            known[node] = (
                getattr(args[0], node.target)(*args[1:], **kwargs)
                if node.op == "call_method"
                else node.target(*args, **kwargs)
            )
        except (TypeError, ValueError, RuntimeError, IndexError):
            return None  # an argument that only makes sense on the model's device
    return known[node] if isinstance(known[node], torch.Tensor) else None


def _size(shape: tuple) -> int:
    size = 1
    for s in shape:
        size *= int(s)
    return size
