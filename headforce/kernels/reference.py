"""The meaning of ragged attention over pages, in plain torch and in any floating dtype, float64 included.

This is what every kernel is compared with. It is written to be read, not to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rotation import turn

RUN_FIELDS = ("row", "rows", "shift")
"""A run: `rows` adjacent rows of the pool from `row` on, whose keys are turned by `shift` frames."""

READ_FIELDS = ("batch", "head", "query_row", "query_rows", "first_run", "runs")
"""A read: which rows of the query, of which head and batch row, read which runs. Unused entries have no query rows."""


def ragged_attention(
    query: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
) -> Tensor:
    """Softmax attention of every head over its own rows of the pool.

    Args:
        query: [B, S, H, D], rotated at the query's own frame.
        k_pool: [P, T, D] pages of T rows; keys rotated at their own frame. v_pool: [P, T, Dv].
        reads: int32 [N, 6], see `READ_FIELDS`.
        runs: int32 [R, 3], see `RUN_FIELDS`; row counts from the first row of the first page.
        theta: [Pt] radians that each temporal pair turns in one frame; empty where RoPE was not recognised.
        first_pair: the first temporal pair. style: how pairs lie in D, see `rotation.turn`.
        scale: factor on the query-key products.

    Returns [B, S, H, Dv] in the dtype of `query`. Query rows that no read names, and reads without rows, give zero.
    Scores and sums are computed in float32, or in float64 for a float64 query.
    """
    compute = torch.promote_types(query.dtype, torch.float32)
    keys, values = k_pool.flatten(0, 1), v_pool.flatten(0, 1)
    out = query.new_zeros((*query.shape[:3], v_pool.shape[-1]))
    for batch, head, query_row, query_rows, first_run, count in reads.tolist():
        if not query_rows or not count:
            continue
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
