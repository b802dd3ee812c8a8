"""The operators of a lowered graph. They are functions of their tensors only; what they mean is in `kernels.reference`.

`write_pages` declares that it changes the pools and `ragged_attention` reads them, so a compiler keeps them in order.
Where the model keeps its own cache, `ragged_attention` reads the operands of the model's attention. Which target
computes attention is part of the graph; what any head reads is in the tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..kernels import reference
from .measuring import measure
from .targets import find_target
from .watch import Launch, watcher

_LIBRARY = torch.library.Library("headforce", "FRAGMENT")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _operator(*, changes: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """Declares a function as an operator `headforce::NAME` that changes these arguments and no others.

    Not by `torch.library.custom_op`, whose layers for autograd take longer than all that an operator here does on the
    host, in every layer of every pass. There is no gradient: a backend that is asked for one refuses (HF-GRAD).
    """

    def declare(function: _Function) -> _Function:
        name = function.__name__
        schema = torch.library.infer_schema(function, mutates_args=changes)
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return function

    return declare


def _looks_like(name: str) -> Callable[[_Function], _Function]:
    """Declares what an operator returns, of tensors that hold nothing."""

    def declare(function: _Function) -> _Function:
        return torch.library.register_fake(f"headforce::{name}", function, lib=_LIBRARY)

    return declare


@_operator(changes=("k_pool", "v_pool"))
def write_pages(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
    """Writes the chunk's keys and values, [B, S, H, D] each, into its pages. See `kernels.reference.write_pages`."""
    reference.write_pages(key, value, k_pool, v_pool, pages.flatten())
    if (by := watcher()) is not None:
        by.wrote(key, value, k_pool, v_pool, pages)


@_looks_like("write_pages")
def _(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
    return None


@_operator(changes=("kept",))
def keep_queries(query: Tensor, rows: Tensor, kept: Tensor) -> None:
    """Copies rows [R] of the query [B, S, H, D] to `kept` [B, R, H, D], or their mean to `kept` [B, 1, H, D].

    With no rows it does nothing.
    """
    if rows.numel():
        chosen = query.index_select(1, rows)
        kept.copy_(chosen if kept.shape[1] == rows.numel() else chosen.float().mean(dim=1, keepdim=True))


@_looks_like("keep_queries")
def _(query: Tensor, rows: Tensor, kept: Tensor) -> None:
    return None


@_operator(changes=("statistics",))
def measure_attention(query: Tensor, key: Tensor, rows: Tensor, statistics: Tensor, scale: float) -> None:
    """Writes what the query attends to, frame by frame, to `statistics`. See `measuring.measure`."""
    measure(query, key, rows, statistics, scale)


@_looks_like("measure_attention")
def _(query: Tensor, key: Tensor, rows: Tensor, statistics: Tensor, scale: float) -> None:
    return None


@_operator()
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


@_looks_like("ragged_attention")
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


@_operator(changes=("k_pool", "v_pool"))
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


@_looks_like("rotate_and_write")
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
