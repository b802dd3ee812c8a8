"""Measuring attention that a model computes itself, frame by frame, next to it in the graph."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..kernels.attention_statistics import attention_statistics
from ..kernels.rotation import INTERLEAVED

SCORES = 1 << 24
"""At most so many scores exist at a time, 64 MiB of float32, as long as a block of `LEAST` keys has no more."""
LEAST = 16


def measure(query: Tensor, key: Tensor, rows: Tensor, statistics: Tensor, scale: float) -> None:
    """Writes `statistics` [3, B, H, G, F]: mass, mean score and entropy on each of F frames, for G groups of queries.

    Args:
        query: [B, S, H, D]. key: [B, R, Hk, D], all rows that attention reads, F frames of equal length in their order.
        rows: int64 [N], the query rows that are measured: G groups of equal size, one after the other. With none,
            nothing is written.
        scale: factor on the products.

    See `kernels.attention_statistics`. The scores of one block of keys exist at a time.
    """
    if not rows.numel():
        return
    (batch, tokens, heads, _), (*_, groups, frames) = query.shape, statistics.shape
    tables = _tables(batch, tokens, heads, frames, key.shape[1] // frames)
    block = max(LEAST, SCORES // (batch * heads * rows.numel()))
    theta = torch.zeros(0, dtype=torch.float64)
    found = attention_statistics(query, key, *tables, frames, rows, theta, 0, INTERLEAVED, scale, block, groups)
    torch.stack(found, out=statistics)


@lru_cache(maxsize=64)
def _tables(batch: int, tokens: int, heads: int, frames: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reads, runs and columns: every head reads all rows, and every frame is a run and a column of its own."""
    cells = [(b, h) for b in range(batch) for h in range(heads)]
    reads = torch.tensor([(b, h, 0, tokens, 0, frames, 1, 0) for b, h in cells], dtype=torch.int32)
    runs = torch.tensor([(frame * length, length, 0) for frame in range(frames)], dtype=torch.int32)
    return reads, runs, torch.arange(frames, dtype=torch.int32)
