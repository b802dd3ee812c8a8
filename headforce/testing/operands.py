"""Attention over a cache that the model keeps itself, with what is expected computed from the oracle alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.rotation import INTERLEAVED
from ..lowering import ops  # noqa: F401  registers the operators
from ..policy import BoundPolicy, Chunk, Warmup, oracle
from .rig import DOUBLE, attend, turned

HEADS, SCALE = 4, 0.4


class Operands:
    """Attention operands of one layer: the rows of `past`, then those of the chunk, as views of a larger cache.

    Rows outside what the model reads hold NaN: reading one shows.
    """

    def __init__(
        self,
        past: Iterable[int],
        chunk: Chunk,
        *,
        batch: int = 1,
        kv_heads: int = HEADS,
        rows: int = 3,
        dim: int = 6,
        value_dim: int = 6,
        style: str = INTERLEAVED,
        seed: int = 0,
    ) -> None:
        self.frames, self.chunk, self.rows = [*past, *chunk.queries], chunk, rows
        self.batch, self.dim, self.style = batch, dim, style
        generator = torch.Generator().manual_seed(seed)
        size = (len(self.frames) + 2) * rows
        caches = [torch.randn(batch, kv_heads, size, d, dtype=DOUBLE, generator=generator) for d in (dim, value_dim)]
        for cache in caches:
            cache[:, :, :rows], cache[:, :, -rows:] = torch.nan, torch.nan
        self.key, self.value = (cache[:, :, rows:-rows].transpose(1, 2) for cache in caches)
        shape = (batch, chunk.frames * rows, HEADS, dim)
        self.query = 3 * torch.randn(shape, dtype=DOUBLE, generator=generator)
        self.theta = torch.tensor([0.7, 0.3], dtype=DOUBLE)

    def attention(self, reads: npt.NDArray, runs: npt.NDArray, target: str, dtype: torch.dtype = DOUBLE) -> Tensor:
        """What a target makes of them, in `dtype`."""
        tables = torch.from_numpy(reads), torch.from_numpy(runs)
        given = [x.to(dtype) for x in (self.query, self.key, self.value)]
        rope = (self.theta, 1, self.style)
        out: Tensor = torch.ops.headforce.ragged_attention(*given, *tables, *rope, SCALE, target)
        return out

    def expected(self, bound: BoundPolicy, layer: int, dtype: torch.dtype = DOUBLE) -> Tensor:
        """The output by the oracle, every operation in `dtype`."""
        out = torch.empty(*self.query.shape[:3], self.value.shape[-1], dtype=dtype)
        share = HEADS // self.key.shape[2]
        for head in range(HEADS):
            rule = bound.rules[layer][head]
            warmup = Warmup(rule.warmup_chunks, rule.warmup) if rule.warmup else None
            for i, query in enumerate(self.chunk.queries):
                reads = {**oracle.read(rule.rule, warmup, self.chunk, query), **{f: f for f in self.chunk.queries}}
                for batch in range(self.batch):
                    keys, values = [], []
                    for frame, position in reads.items():
                        at = slice(self.frames.index(frame) * self.rows, (self.frames.index(frame) + 1) * self.rows)
                        angle = (position - frame) * self.theta
                        keys.append(turned(self.key[batch, at, head // share].to(dtype), angle, 1, self.style))
                        values.append(self.value[batch, at, head // share].to(dtype))
                    rows = slice(i * self.rows, (i + 1) * self.rows)
                    query_rows = self.query[batch, rows, head].to(dtype)
                    out[batch, rows, head] = attend(query_rows, torch.cat(keys), torch.cat(values), SCALE)
        return out
