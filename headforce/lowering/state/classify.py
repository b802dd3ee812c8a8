"""Measuring what the heads of a model attend to, in the pages and queries of one pass.

While a pass runs, only a sample of its queries is kept; a later pass of the same chunk writes over it. When the chunk
has become history, the attention of the kept queries is computed once, over the keys of that last pass, which are still
in their pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.attention_statistics import attention_statistics
from ...policy.classify import Classify
from ..pool import PagePool
from .turning import Turning

FIRST, MIDDLE, CURRENT = range(3)


def masses(
    pool: PagePool, turning: Turning, queries: Sequence[Tensor], scale: float, classify: Classify
) -> tuple[list[list[float]], list[list[float]]]:
    """The share of attention on the first frames and on the middle ones, [layer][head] each, in the last pass.

    Args:
        pool: with the keys of the pass; its stream is still at that chunk, in its warm-up. turning: how they turn.
        queries: [B, R, H, D] for each layer, what was kept of the pass. scale: factor on the products.

    Videos of a batch count alike. The host waits for the device once, for all layers together.
    """
    found = []
    for layer, query in enumerate(queries):
        rows = torch.arange(query.shape[1], device=query.device)
        tables = _tables(pool, layer, query.shape[1], classify)
        theta, pairs = turning.theta.to(query.device), (turning.first_pair, turning.style)
        sums = attention_statistics(query, pool.k, *tables, 3, rows, theta, *pairs, scale, block=1024)
        found.append(sums.mass[:, :, 0].mean(dim=0))
    first, middle = torch.stack(found)[..., :CURRENT].movedim(-1, 0).tolist()
    return first, middle


def _tables(pool: PagePool, layer: int, rows: int, classify: Classify) -> tuple[Tensor, Tensor, Tensor]:
    """Reads, runs and columns of one layer for `rows` kept query rows, a run for each frame."""
    stream, regions, size = pool.stream, pool.regions, pool.shape.rows
    assert stream.chunk is not None
    assert stream.plan is not None
    assert regions is not None
    reads: list[tuple[int, ...]] = []
    runs: list[tuple[int, int, int]] = []
    columns: list[int] = []
    for row in range(stream.batch):
        for head in range(stream.policy.heads):
            slot = stream.lane(layer, head, row).slots.slot
            base = int(regions.base[layer, row, head])
            past = stream.plan.of(layer, head, row).readings[0].frames.tolist()
            frames = [*past, *([frame, 0] for frame in stream.chunk.queries)]
            reads.append((row, head, 0, rows, len(runs), len(frames), 1, 0))
            runs += [((base + slot[frame]) * size, size, shift) for frame, shift in frames]
            columns += [FIRST if i < classify.first_frames else MIDDLE for i in range(len(past))]
            columns += [CURRENT] * stream.chunk.frames
    return tuple(torch.tensor(table, dtype=torch.int32) for table in (reads, runs, columns))  # type: ignore[return-value]
