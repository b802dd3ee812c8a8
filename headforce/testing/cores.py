"""Attention in the spellings that a `Recipe` names: products, softmax, scale, mask and repeated heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from .zoo import HEAD_DIM, HEADS

if TYPE_CHECKING:
    from .graphs import Recipe

SCALE = 0.2

TO_HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.transpose(1, 2),
    "permute": lambda x: x.permute(0, 2, 1, 3),
    "contiguous": lambda x: torch.transpose(x, 1, 2).contiguous(),
    "movedim": lambda x: x.movedim(2, 1),
    "merged": lambda x: x.flatten(2).view(x.shape[0], x.shape[1], x.shape[2], -1).swapaxes(-2, -3),
}
"""[B, S, H, D] to [B, H, S, D]."""

SOFTMAXES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda x: torch.softmax(x, dim=-1),
    "functional": lambda x: F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype),
    "method": lambda x: x.softmax(x.dim() - 1),
    "wider": lambda x: torch.softmax(x.float(), -1).type_as(x),
    "special": lambda x: torch.special.softmax(x, -1),
}

GROUPED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "interleaved": lambda x, n: x.repeat_interleave(n, dim=2),
    "expanded": lambda x, n: x[:, :, :, None].expand(-1, -1, -1, n, -1).reshape(x.shape[0], x.shape[1], -1, x.shape[3]),
    "stacked": lambda x, n: x.unsqueeze(3).expand(*x.shape[:3], n, x.shape[3]).flatten(2, 3),
}
"""[B, S, Hk, D] to [B, S, n * Hk, D], each head for n adjacent ones."""

HIDDEN = ("causal", "first rows hidden")
"""Faults that hide rows of the history."""

PRODUCTS = ("sdpa", "matmul", "einsum", "einsum_rows", "bmm", "baddbmm", "flex")
WRITTEN = PRODUCTS[1:6]
SCALES = ("default", "query", "key", "after", "divided", "before")
MASKS = ("none", "added", "filled", "chosen", "boolean")


def attend(recipe: Recipe, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q [B, S, H, D] over k and v [B, C, Hk, D], as the recipe has it."""
    fault, native = recipe.fault, recipe.product in ("sdpa", "flex") and recipe.grouped == "native"
    groups = HEADS // k.shape[2]
    if fault == "tiled heads":
        k, v = (x.repeat(1, 1, groups, 1) for x in (k, v))
    elif groups > 1 and not native:
        k, v = (GROUPED[recipe.grouped](x, groups) for x in (k, v))
    scale = SCALE if recipe.scale != "default" else HEAD_DIM**-0.5
    if recipe.scale == "query":
        q, scale = q * scale, 1.0
    elif recipe.scale == "key":
        k, scale = scale * k, 1.0
    elif recipe.scale == "before":
        q, k, scale = q * scale**0.5, k / scale**-0.5, 1.0
    if recipe.product in ("sdpa", "flex"):
        return _fused(recipe, q, k, v, scale)
    return _written(recipe, q, k, v, scale)


def _fused(recipe: Recipe, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    fault, grouped = recipe.fault, k.shape[2] < q.shape[2]
    if fault == "heads in front":
        q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).permute(1, 2, 0, 3)
    q, k, v = (TO_HEADS[recipe.heads](x) for x in (q, k, v))
    if recipe.product == "flex":
        mod = _score_mod(recipe, q.shape[2], k.shape[2])
        return flex_attention(q, k, v, score_mod=mod, scale=scale, enable_gqa=grouped).transpose(1, 2)
    options = {"scale": scale, "dropout_p": 0.1 if fault == "dropout" else 0.0, "enable_gqa": grouped}
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(recipe, q, k), **options)
    if fault == "called twice":
        out = out + F.scaled_dot_product_attention(q * 2, k, v, **options)
    return out.transpose(1, 2)


def _score_mod(recipe: Recipe, rows: int, keys: int) -> Callable[..., Tensor] | None:
    if recipe.fault == "soft cap":
        return lambda score, b, h, i, j: torch.tanh(score / 8) * 8
    if recipe.fault == "bias":
        return lambda score, b, h, i, j: score + 0.1 * j
    if recipe.fault in HIDDEN:
        first = rows - keys if recipe.fault == "causal" else 3
        return lambda score, b, h, i, j: torch.where(j >= first, score, -torch.inf) * torch.where(i >= 0, 1.0, 2.0)
    return None


def _mask(recipe: Recipe, q: Tensor, k: Tensor) -> Tensor | None:
    """A mask [queries, keys] of True where keys are read, or of what is added to scores; operands [..., S, D]."""
    rows, keys = q.shape[-2], k.shape[-2]
    read = torch.ones(rows, keys, dtype=torch.bool, device=q.device)
    if recipe.fault == "causal":
        read = read.tril(keys - rows)
    elif recipe.fault == "first rows hidden":
        read = read & (torch.arange(keys, device=q.device) >= 3)
    elif recipe.fault == "mask from data":
        read = read & (k.flatten(0, -3)[0].mean(-1) < 10.0)
    elif recipe.mask == "none":
        return None
    if recipe.mask == "added" or (recipe.mask == "none" and recipe.heads == "permute"):
        return torch.zeros(rows, keys, dtype=q.dtype, device=q.device).masked_fill(~read, -torch.inf)
    return read


def _written(recipe: Recipe, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    batch, fault, product = q.shape[0], recipe.fault, recipe.product
    rows_first = product == "einsum_rows"
    if product in ("matmul", "bmm", "baddbmm"):
        q, k, v = (TO_HEADS[recipe.heads](x) for x in (q, k, v))
    if product in ("bmm", "baddbmm"):
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    if product == "matmul":
        scores = q @ k.transpose(-2, -1)
    elif product == "bmm":
        scores = torch.bmm(q, k.mT)
    elif product == "baddbmm":
        unused = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
        scores, scale = torch.baddbmm(unused, q, k.transpose(1, 2), beta=0, alpha=scale), 1.0
    else:
        scores = torch.einsum("bqhd,bkhd->bqhk" if rows_first else "bqhd, bkhd -> bhqk", q, k)
    if scale != 1.0:
        scores = scores / (1 / scale) if recipe.scale == "divided" else scale * scores
    if rows_first:
        scores = scores.transpose(1, 2)
    scores = _changed(recipe, scores, q if product not in ("einsum", "einsum_rows") else q.transpose(1, 2), k)
    if fault == "exponentials":
        weights = torch.exp(scores - 2.0)
        weights = weights / weights.sum(-1, keepdim=True)
    else:
        weights = SOFTMAXES[recipe.softmax](scores)
    if fault == "scaled twice":
        weights = weights * 0.5
    if product in ("einsum", "einsum_rows"):
        out = torch.einsum(
            "bkhd,bhqk->bqhd" if rows_first else "bhqk,bkhd->bqhd", *((v, weights) if rows_first else (weights, v))
        )
    elif product == "matmul":
        out = (weights @ v).transpose(1, 2)
    else:
        out = torch.bmm(weights, v).unflatten(0, (batch, -1)).transpose(1, 2)
    return out + weights.amax() if fault == "weights read" else out


def _changed(recipe: Recipe, scores: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Scores [..., queries, keys] under the mask, or as the fault has them."""
    if recipe.fault == "soft cap":
        return torch.tanh(scores / 8) * 8
    if recipe.fault == "bias":
        return scores + torch.arange(scores.shape[-1], dtype=scores.dtype, device=scores.device)
    keys = k if recipe.product not in ("einsum", "einsum_rows") else k.transpose(1, 2)
    mask = _mask(recipe, q, keys)
    if mask is None:
        return scores
    if mask.dtype != torch.bool:
        return mask + scores if recipe.softmax == "torch" else scores + mask
    if recipe.mask == "chosen":
        return torch.where(mask, scores, torch.finfo(scores.dtype).min)
    return scores.masked_fill(~mask, -torch.inf)
