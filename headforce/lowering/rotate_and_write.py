"""RoPE of a chunk and its page write, by one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels.config import Config
from ..kernels.spec import Spec
from .bounds import check_pages, checks_launches
from .codegen import kernel_of
from .launch import DTYPES, launch, named, prepare_interpreter

WRITE = Config(32, 16, 4, 1)
"""Rows of a program that rotates and writes; there is nothing to multiply."""


def rotate_and_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_turn: Tensor,
    key_turn: Tensor,
    style: str,
    k_pool: Tensor,
    v_pool: Tensor,
    pages: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """See `kernels.reference.rotate_and_write`."""
    _check_write(query, key, value, query_turn, key_turn, k_pool, v_pool, pages)
    prepare_interpreter(query.device)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    batch, rows, heads, dim = query.shape
    out = query.new_empty(query.shape, dtype=dtype)
    spec = Spec(dtype, k_pool.dtype, dim, value.shape[-1], style, False, False, False, WRITE)
    arguments: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "query_turn": query_turn.contiguous(),
        "key_turn": key_turn.contiguous(),
        "out": out,
        "k_pool": k_pool,
        "v_pool": v_pool,
        "pages": pages,
        "rows": rows,
        "heads": heads,
        "frames": rows // k_pool.shape[1],
        "page_rows": k_pool.shape[1],
        **named("query", query.stride()[:3]),
        **named("key", key.stride()[:3]),
        **named("value", value.stride()[:3]),
        **named("out", out.stride()[:3]),
    }
    launch(kernel_of("rotate_and_write", spec), (heads, -(-rows // WRITE.block_m), batch), arguments, WRITE)
    return out


def _check_write(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_turn: Tensor,
    key_turn: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    pages: Tensor,
) -> None:
    """HF-KERNEL for a dtype that the kernel does not take, HF-TABLES for tensors that do not go together."""
    tensors = (query, key, value, query_turn, key_turn, k_pool, v_pool)
    if not {query.dtype, key.dtype, value.dtype, k_pool.dtype} <= set(DTYPES) or v_pool.dtype != k_pool.dtype:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"operands of {query.dtype}, {key.dtype}, {value.dtype} and pages of {k_pool.dtype}, {v_pool.dtype}",
            needed="float32, bfloat16 or float16, pages of keys and values alike",
        )
    batch, rows, heads, dim = query.shape
    count, page_rows = k_pool.shape[:2]
    shapes = {
        "key": (key.shape, (batch, rows, heads, dim)),
        "value": (value.shape, (batch, rows, heads, v_pool.shape[-1])),
        "query_turn": (query_turn.shape, (rows, dim // 2, 2)),
        "key_turn": (key_turn.shape, (rows, dim // 2, 2)),
        "k_pool": (k_pool.shape, (count, page_rows, dim)),
        "v_pool": (v_pool.shape, (count, page_rows, value.shape[-1])),
        "pages": (pages.shape, (batch * heads * (rows // page_rows),)),
    }
    for name, (shape, needed) in shapes.items():
        if tuple(shape) != needed:
            raise HeadforceError("HF-TABLES", site=name, found=f"{tuple(shape)}", needed=f"{needed}")
    if rows % page_rows or not (k_pool.is_contiguous() and v_pool.is_contiguous()) or pages.dtype != torch.int64:
        raise HeadforceError(
            "HF-TABLES",
            found=f"{rows} rows over pages of {page_rows}, contiguous: {k_pool.is_contiguous()}; {pages.dtype}",
            needed="whole pages in contiguous pools, their numbers in int64",
        )
    if len({t.device for t in (*tensors, pages)}) > 1:
        raise HeadforceError("HF-KERNEL", found=f"{[str(t.device) for t in tensors]}", needed="one device")
    if checks_launches():
        check_pages(pages, count)
