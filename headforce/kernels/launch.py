"""Launching the portable kernel: shapes and strides in, tensors out."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..errors import HeadforceError
from . import interpreter
from .config import Config
from .ragged_attention import LOG2E, combine_parts, ragged_attention
from .rotation import SPLIT_HALF

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
    *,
    config: Config,
    workspace_rows: int = 0,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Ragged attention by the portable kernel; arguments as in `kernels.reference.ragged_attention`.

    Args:
        config: how the work is cut; `parts` bounds the parts that `reads` may name.
        workspace_rows: query rows that all parts of all reads that are cut take together.

    Returns the output [B, S, H, Dv] and, `with_lse`, the natural log of the sum of exponentials, float32 [B, H, S].
    Raises HF-KERNEL for a device or a dtype that the kernel does not take.
    """
    _check(query, key)
    batch, tokens, heads, dim = query.shape
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    key_strides, value_strides = _strides(key), _strides(value)
    group = 1 if key.dim() == 3 else heads // key.shape[2]
    value_dim = value.shape[-1]
    out = query.new_zeros((batch, tokens, heads, value_dim))
    lse = query.new_empty((batch, heads, tokens), dtype=torch.float32) if with_lse else None
    grid = (triton.cdiv(tokens, config.block_m), len(reads), config.parts)
    block_d, block_dv = (max(16, triton.next_power_of_2(width)) for width in (dim, value_dim))
    part_out = query.new_empty((workspace_rows, block_dv), dtype=torch.float32)
    part_lse = query.new_empty((workspace_rows,), dtype=torch.float32)
    of_out = (*out.stride()[:3],)
    of_lse = (0, 0) if lse is None else lse.stride()[:2]
    common = {
        "DV": value_dim,
        "BLOCK_DV": block_dv,
        "BLOCK_M": config.block_m,
        "LSE": with_lse,
        "num_warps": config.warps,
    }
    ragged_attention[grid](
        query,
        key,
        value,
        out,
        lse if lse is not None else out,
        part_out,
        part_lse,
        reads,
        runs,
        theta,
        *query.stride()[:3],
        *key_strides,
        *value_strides,
        *of_out,
        *of_lse,
        group,
        theta.numel(),
        first_pair,
        scale * LOG2E,
        D=dim,
        BLOCK_D=block_d,
        BLOCK_N=config.block_n,
        PARTS=config.parts,
        STAGES=config.stages,
        ROTATED=theta.numel() > 0,
        SPLIT_HALF=style == SPLIT_HALF,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_stages=config.stages,
        **common,
    )
    if workspace_rows:
        target = lse if lse is not None else out
        combine_parts[grid[:2]](out, target, part_out, part_lse, reads, *of_out, *of_lse, **common)
    return out, lse


def _strides(source: Tensor) -> tuple[int, int, int]:
    """Elements from one batch row, row and K/V head to the next; pages are one long column of rows."""
    if source.dim() == 3:
        return 0, source.stride(1), 0
    return source.stride(0), source.stride(1), source.stride(2)


def _check(query: Tensor, key: Tensor) -> None:
    if query.dtype not in DTYPES or key.dtype not in DTYPES:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"a query of {query.dtype} over keys of {key.dtype}",
            needed="float32, bfloat16 or float16",
        )
    if query.device.type == "cpu":
        if not interpreter.enabled():
            raise HeadforceError(
                "HF-KERNEL",
                found="tensors on the CPU",
                needed="a GPU, or TRITON_INTERPRET=1 set before triton is imported",
            )
        interpreter.install()
    if key.dim() == 3 and not key.is_contiguous():
        raise HeadforceError("HF-KERNEL", found=f"pages with strides {key.stride()}", needed="contiguous pages")
