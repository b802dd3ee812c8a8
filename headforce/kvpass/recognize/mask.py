"""Masks, by proof. A mask that is not of a known class makes the site refused (HF-MASK).

    attn_mask=None                                            "none"
    torch.ones(q, k, dtype=torch.bool), torch.zeros(q, k)     "all_true" (any size, also symbolic; zeros are added), and
                                                              what elementwise operations make of them
    is_causal=True with as many keys as queries               "causal"
    torch.ones(q, k, dtype=torch.bool).tril(k - q)            "causal": built from constants, computed here and compared
    arange(k)[None] // b <= (arange(q)[:, None] + k - q) // b "block_causal" with block b
    causal, and the newest w keys of each query alone         "sliding_window" with block w

A mask may be built in any number of steps from constants, in-place writes included (`kvpass/constants.py`).
Counter-examples, all refused: a mask that is a graph input or computed from one; one that hides other rows;
`is_causal=True` over a history (it aligns to the first key, so it would hide the history); a constant bias
(HF-SCOREMOD).
"""

from __future__ import annotations

import torch
from torch.fx import Node

from ..constants import constant, uniform
from ..graph_view import GraphView
from ..site import Hidden, Mask
from .base import AttentionCall, Refused, recognizer

MAX_ELEMENTS = 1 << 24
"""Of a mask that is looked at place by place."""


@recognizer("mask", order=10)
def constant_mask(view: GraphView, call: AttentionCall) -> Mask | None:
    """The class of a mask, or None if it is not proved."""
    if isinstance(call.mask, Mask):
        return call.mask
    if call.mask is None:
        if not call.causal:
            return Mask("none")
        rows, keys = (view.shape(c.node)[2] for c in (call.q, call.k))
        return Mask("causal") if view.facts.equal(rows, keys) else None
    hidden, mask = isinstance(call.mask, Hidden), call.mask.node if isinstance(call.mask, Hidden) else call.mask
    if call.causal or not isinstance(mask, Node) or view.shape(mask) is None:
        return None
    if hides_nothing(uniform(view, mask), hidden):
        return Mask("all_true")
    value = constant(view, mask, call.node)
    if not isinstance(value, torch.Tensor) or (hidden and value.dtype != torch.bool):
        return None
    if value.dtype != torch.bool and not bool(((value == 0) | (value == -torch.inf)).all()):
        raise Refused("HF-SCOREMOD", f"{mask.name}, a bias on the scores", "a mask of 0 and -inf, or no mask")
    return classify(~value if hidden else value)


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
    window = int(keep[-1].sum())
    if history >= 0 and window > 0 and torch.equal(keep, (key <= row + history) & (key > row + history - window)):
        return Mask("sliding_window", window)
    return None


def hides_nothing(value: torch.Tensor | None, hidden: bool = False) -> bool:
    """Whether a mask of this value everywhere leaves scores as they are; `hidden`: True in it means not read."""
    if value is None:
        return False
    return bool(value != hidden) if value.dtype == torch.bool else not hidden and bool(value == 0)
