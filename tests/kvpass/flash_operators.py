"""The operators of flash-attn, with its schemas and a plain meaning, so that graphs with them can be made and run.

Schemas as in `flash_attn/flash_attn_interface.py` of flash-attn 2.7 to 2.8 and `hopper/flash_attn_interface.py` of
flash-attn 3; krea-ai/realtime-video's `wan/modules/sage.py` for `mylib::sageattn`. Where the package is installed its
own operators are used, and these tests need a GPU that it runs on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LIBRARIES = []


def _define(namespace: str, schema: str, function, fake) -> None:
    library = torch.library.Library(namespace, "FRAGMENT")
    _LIBRARIES.append(library)
    name = schema.partition("(")[0]
    library.define(schema)
    library.impl(name, function, "CPU")
    torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> Tensor:
    """[B, S, H, D]; causal is aligned to the last key."""
    rows, keys = q.shape[1], k.shape[1]
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows) if causal else None
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2)


def _forward(q, k, v, dropout_p, softmax_scale, causal, *rest):
    return _attend(q, k, v, softmax_scale, causal).contiguous(), *_others(q)


def _varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, dropout_p, softmax_scale, causal, *rest):
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        (a, b), (c, d) = cu_seqlens_q[i : i + 2].tolist(), cu_seqlens_k[i : i + 2].tolist()
        parts.append(_attend(q[None, a:b], k[None, c:d], v[None, c:d], softmax_scale, causal)[0])
    return torch.cat(parts), *_others(q)


def _third(q, k, v, *rest):
    scale, causal = (*rest, None, False)[20:22] if len(rest) == 20 else (*rest, False)[20:22]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _attend(q, k, v, scale, causal).contiguous(), *_others(q)


def _others(q: Tensor) -> tuple[Tensor, ...]:
    """Log-sum-exp, S_dmask and the state of the random numbers, which nobody here looks at."""
    return q.new_zeros(q.shape[:-1], dtype=torch.float32), q.new_empty(0), torch.zeros(2, dtype=torch.int64)


def _fake(q, *rest, **others):
    return torch.empty_like(q), *_others(q)


_TAIL = "Tensor? alibi_slopes=None, bool return_softmax=False"
_WINDOW = "SymInt window_size_left=-1, SymInt window_size_right=-1, float softcap=0.0"
if not hasattr(torch.ops.flash_attn, "_flash_attn_forward"):
    _define(
        "flash_attn",
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
        "SymInt window_size_left, SymInt window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        _forward,
        _fake,
    )
    _define(
        "flash_attn",
        "_flash_attn_varlen_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
        "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
        f"{_WINDOW}, {_TAIL}, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
        "bool zero_tensors=False) -> (Tensor, Tensor, Tensor, Tensor)",
        _varlen,
        _fake,
    )
if not hasattr(torch.ops.flash_attn_3, "_flash_attn_forward"):
    _optional = (
        "k_new v_new qv out_ cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k max_seqlen_q max_seqlen_k "
        "page_table kv_batch_idx leftpad_k rotary_cos rotary_sin seqlens_rotary q_descale k_descale v_descale"
    )
    _tensors = ", ".join(f"{'SymInt' if n.startswith('max') else 'Tensor'}? {n}=None" for n in _optional.split())
    _define(
        "flash_attn_3",
        f"_flash_attn_forward(Tensor q, Tensor k, Tensor v, {_tensors}, float? softmax_scale=None, bool causal=False, "
        "SymInt window_size_left=-1, SymInt window_size_right=-1, SymInt attention_chunk=0, float softcap=0.0, "
        "bool rotary_interleaved=True, Tensor? scheduler_metadata=None, SymInt num_splits=1, bool? pack_gqa=None, "
        "SymInt sm_margin=0) -> (Tensor, Tensor, Tensor, Tensor)",
        _third,
        _fake,
    )
_define(
    "mylib",
    "sageattn(Tensor q, Tensor k, Tensor v, Tensor? attn_mask=None, float dropout_p=0., bool is_causal=False)"
    " -> Tensor",
    lambda q, k, v, *rest: F.scaled_dot_product_attention(q, k, v),
    lambda q, *rest: torch.empty_like(q),
)


# Cores over them: (q, k, v) [B, S, H, D] -> [B, S, H, D].


def flash(q, k, v, *, causal=False, window=(-1, -1), softcap=0.0, slopes=None, scale=0.25):
    """As `flash_attn_func` calls the operator."""
    out, _, _, _ = torch.ops.flash_attn._flash_attn_forward(
        q, k, v, 0.0, scale, causal=causal, window_size_left=window[0], window_size_right=window[1], softcap=softcap,
        alibi_slopes=slopes, return_softmax=False,
    )  # fmt: skip
    return out


def flash_packed(q, k, v, *, lengths=None, **options):
    """As Wan's `attention.py` calls `flash_attn_varlen_func`: boundaries from the lengths of all sequences."""
    batch, rows = q.shape[:2]
    bounds = []
    for x in (q, k):
        each = torch.tensor([x.shape[1]] * batch, dtype=torch.int32).to(device=q.device, non_blocking=True)
        each = each if lengths is None else lengths
        bounds.append(torch.cat([each.new_zeros([1]), each]).cumsum(0, dtype=torch.int32).to(q.device))
    flat = (x.flatten(0, 1) for x in (q, k, v))
    op = torch.ops.flash_attn._flash_attn_varlen_forward
    out, _, _, _ = op(*flat, *bounds, rows, k.shape[1], 0.0, q.shape[-1] ** -0.5, False, **options)
    return out.unflatten(0, (batch, rows))


def flash_three(q, k, v, **options):
    """As flash-attn 3 calls its operator."""
    return torch.ops.flash_attn_3._flash_attn_forward(q, k, v, softmax_scale=0.25, **options)[0]


def sage(q, k, v):
    return torch.ops.mylib.sageattn(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
