"""The meaning of ragged attention, in plain torch and in any floating dtype, float64 included.

This is what every kernel is compared with. It is written to be read, not to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rotation import rotated, turn

RUN_FIELDS = ("row", "rows", "shift")
"""A run: `rows` adjacent rows from `row` on, whose keys are turned by `shift` frames."""

READ_FIELDS = ("batch", "head", "query_row", "query_rows", "first_run", "runs", "parts", "slot")
"""A read: which rows of the query, of which head and batch row, read which runs. Unused entries have no query rows.
`parts` is into how many parts a kernel cuts the runs, and `slot` the row of its workspace where their results begin:
this is about work and does not change the meaning."""


def head_rows(source: Tensor, batch: int, head: int, heads: int) -> Tensor:
    """The rows [R, D] that the runs of one of `heads` query heads count, in pages or in an operand of attention."""
    return source.flatten(0, 1) if source.dim() == 3 else source[batch, :, head // (heads // source.shape[2])]


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
) -> Tensor:
    """Softmax attention of every head over its own rows.

    Keys and values are pages, which heads share out among themselves, or operands as the model has them, in which
    every batch row and head has rows of its own.

    Args:
        query: [B, S, H, D], rotated at the query's own frame.
        key: [P, T, D] pages of T rows, or [B, R, Hk, D]; keys rotated at their own frame. Hk divides H, and head h
            reads K/V head h // (H / Hk). value: the same with Dv.
        reads: int32 [N, 8], see `READ_FIELDS`.
        runs: int32 [N, 3], see `RUN_FIELDS`; row counts from the first row of the first page, or in an operand from
            the first row of the read's own batch row and head.
        theta: [Pt] radians that each temporal pair turns in one frame; empty where RoPE was not recognised.
        first_pair: the first temporal pair. style: how pairs lie in D, see `rotation.turn`.
        scale: factor on the query-key products.

    Returns [B, S, H, Dv] in the dtype of `query`. Query rows that no read names, and reads without rows, give zero.
    Scores and sums are computed in float32, or in float64 for a float64 query.
    """
    compute = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros((*query.shape[:3], value.shape[-1]))
    for batch, head, query_row, query_rows, first_run, count, *_ in reads.tolist():
        if not query_rows or not count:
            continue
        keys, values = (head_rows(source, batch, head, query.shape[2]) for source in (key, value))
        k_parts, v_parts = [], []
        for row, rows, shift in runs[first_run : first_run + count].tolist():
            k = keys[row : row + rows].to(compute)
            k_parts.append(turn(k, shift * theta.to(torch.float64), first_pair, style) if shift else k)
            v_parts.append(values[row : row + rows].to(compute))
        part = (batch, slice(query_row, query_row + query_rows), head)
        scores = query[part].to(compute) @ torch.cat(k_parts).mT * scale
        out[part] = (scores.softmax(dim=-1) @ torch.cat(v_parts)).to(query.dtype)
    return out


def write_pages(key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
    """Writes the keys and values of a chunk, [B, S, H, D] each, into the pages of its frames, in place.

    `pages` is int64 [B * H * n]: the page of frame f of head h of batch row b is entry (b * H + h) * n + f, where the
    chunk has n = S / T frames and a page T rows.
    """
    batch, tokens, heads, _ = key.shape
    rows = k_pool.shape[1]
    for source, pool in ((key, k_pool), (value, v_pool)):
        frames = source.reshape(batch, tokens // rows, rows, heads, source.shape[-1]).permute(0, 3, 1, 2, 4)
        pool.index_copy_(0, pages, frames.reshape(-1, rows, source.shape[-1]).to(pool.dtype))


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
    """RoPE on the query and key of a chunk, and `write_pages` of the turned key and the value.

    Args:
        query, key: [B, S, H, D] before the rotation. value: [B, S, H, Dv].
        query_turn, key_turn: [S, D / 2, 2], cosine and sine for every row and pair.
        style: how pairs lie in D, see `rotation.turn`. dtype: of the result.

    Returns the turned query [B, S, H, D]. The arithmetic is in float32, or in float64 for a float64 query.
    """
    write_pages(rotated(key, key_turn, style), value, k_pool, v_pool, pages)
    return rotated(query, query_turn, style).to(dtype)
