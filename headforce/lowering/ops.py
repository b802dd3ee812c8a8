"""The operators of a lowered graph. They are functions of their tensors only; what they mean is in `kernels.reference`.

`write_pages` declares that it changes the pools and `ragged_attention` reads them, so a compiler keeps them in order.
Where the model keeps its own cache, `ragged_attention` reads the operands of the model's attention. Which target
computes attention is part of the graph; what any head reads is in the tables.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..kernels import reference
from .measuring import measure
from .targets import find_target
from .watch import Launch, watcher


@torch.library.custom_op("headforce::write_pages", mutates_args=("k_pool", "v_pool"))
def write_pages(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
    """Writes the chunk's keys and values, [B, S, H, D] each, into its pages. See `kernels.reference.write_pages`."""
    reference.write_pages(key, value, k_pool, v_pool, pages.flatten())
    if (by := watcher()) is not None:
        by.wrote(key, value, k_pool, v_pool, pages)


@write_pages.register_fake
def _(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
    return None


@torch.library.custom_op("headforce::keep_queries", mutates_args=("kept",))
def keep_queries(query: Tensor, rows: Tensor, kept: Tensor) -> None:
    """Copies rows [R] of the query [B, S, H, D] to `kept` [B, R, H, D], or their mean to `kept` [B, 1, H, D].

    With no rows it does nothing.
    """
    if rows.numel():
        chosen = query.index_select(1, rows)
        kept.copy_(chosen if kept.shape[1] == rows.numel() else chosen.float().mean(dim=1, keepdim=True))


@keep_queries.register_fake
def _(query: Tensor, rows: Tensor, kept: Tensor) -> None:
    return None


@torch.library.custom_op("headforce::measure_attention", mutates_args=("statistics",))
def measure_attention(query: Tensor, key: Tensor, rows: Tensor, statistics: Tensor, scale: float) -> None:
    """Writes what the query attends to, frame by frame, to `statistics`. See `measuring.measure`."""
    measure(query, key, rows, statistics, scale)


@measure_attention.register_fake
def _(query: Tensor, key: Tensor, rows: Tensor, statistics: Tensor, scale: float) -> None:
    return None


@torch.library.custom_op("headforce::ragged_attention", mutates_args=())
def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
    target: str,
) -> Tensor:
    """Attention of every head over its own rows, [B, S, H, Dv]. See `kernels.reference.ragged_attention`."""
    launch = Launch(query, key, value, reads, runs, theta, first_pair, style, scale)
    result = find_target(target)(*launch)
    if (by := watcher()) is not None:
        by.attended(launch, result)
    return result


@ragged_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
    target: str,
) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[-1]))


@torch.library.custom_op("headforce::rotate_and_write", mutates_args=("k_pool", "v_pool"))
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
    """RoPE on query and key, and the chunk's keys and values into its pages: the turned query, [B, S, H, D].

    See `kernels.reference.rotate_and_write`. One launch on a GPU and in Triton's interpreter.
    """
    arguments = (query, key, value, query_turn, key_turn, style, k_pool, v_pool, pages.flatten(), dtype)
    if runs_kernels(query.device):
        from .rotate_and_write import rotate_and_write as launched  # lazy: a machine without triton has the reference

        turned = launched(*arguments)
    else:
        turned = reference.rotate_and_write(*arguments)
    if (by := watcher()) is not None:
        by.wrote(reference.rotated(key, key_turn, style), value, k_pool, v_pool, pages)
    return turned


@rotate_and_write.register_fake
def _(
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
    return query.new_empty(query.shape, dtype=dtype)


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run there: on a GPU, and on the CPU in Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
