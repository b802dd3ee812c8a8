"""Attention that rests on few keys. Random weights spread it over all of them, and then a wrong key hardly shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOGITS = 6.0
"""The factor on logits at which queries and keys of unit size rest on a handful of keys, however many there are."""

_NORMS = ("norm_q.weight", "norm_k.weight")
_QUERIES = ("q.weight", "to_q.weight", "q_proj.weight")


def spread(query: Tensor, key: Tensor, scale: float) -> float:
    """The mean entropy of attention of [B, S, H, D] over [B, N, H, D], as a share of log N: 1 is flat."""
    scores = torch.einsum("bshd,bnhd->bhsn", query.double(), key.double()) * scale
    logs = scores.log_softmax(-1)
    return float(-(logs.exp() * logs).sum(-1).mean() / math.log(key.shape[1]))


@torch.no_grad()
def peak(model: nn.Module, factor: float = LOGITS, *, without: str = "cross") -> list[str]:
    """Multiplies the logits of self-attention by `factor`; the names of the parameters that were changed.

    They are the weights that norm queries and keys, half of the factor each, or else those that project queries.
    Modules with `without` in their name stay as they are. ValueError where there is nothing of either kind.
    """
    named = {name: p for name, p in model.named_parameters() if without not in name}
    changed = [name for name in named if name.endswith(_NORMS)]
    each = math.sqrt(factor)
    if not changed:
        changed = [name for name in named if f".{name}".endswith(tuple(f".{end}" for end in _QUERIES))]
        each = factor
    if not changed:
        raise ValueError(f"no parameter of {type(model).__name__} ends in {', '.join((*_NORMS, *_QUERIES))}")
    for name in changed:
        named[name].mul_(each)
    return changed
