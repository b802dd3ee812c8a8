"""A stream with pools and random tensors, and attention computed from the oracle alone.

Nothing in what is expected uses plans, pages or tables: keys and values are remembered by layer and frame, moved in
time by complex multiplication, and attended to in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.budget import Budget, limit
from ..kernels.rotation import INTERLEAVED
from ..lowering import ops  # noqa: F401  registers the operators
from ..lowering.plan import Cell
from ..lowering.pool import PagePool, PageShape
from ..lowering.stream import Decider, Event, Stream
from ..policy import BoundPolicy, Policy, Warmup, oracle, parse_rule

DOUBLE = torch.float64


class PoisonedPool(PagePool):
    """A pool whose pages hold NaN until they are written, and again once nothing holds them."""

    def _empty(self, pages: int, width: int) -> Tensor:
        return super()._empty(pages, width).fill_(torch.nan)

    def update(self) -> None:
        super().update()
        assert self.regions is not None
        free = torch.ones(len(self.k), dtype=torch.bool)
        for (layer, row, head), base in np.ndenumerate(self.regions.base):
            lane = self.stream.lane(layer, head, row)
            free[[int(base) + page for frame, page in lane.slots.slot.items() if frame < self.stream.history]] = False
            free[int(base) : int(base) + lane.slots.reserved] = False
        self.k[free], self.v[free] = torch.nan, torch.nan


def turned(key: Tensor, angle: Tensor, first_pair: int, style: str) -> Tensor:
    """The last dim of `key`, its pairs from `first_pair` on turned by `angle` [..., pairs], by complex multiplication.

    The arithmetic is in the dtype of `key`, float32 at least.
    """
    dtype, key = key.dtype, key.to(torch.promote_types(key.dtype, torch.float32))
    half = key.shape[-1] // 2
    pairs = key.unflatten(-1, (half, 2)) if style == INTERLEAVED else key.unflatten(-1, (2, half)).mT
    factor = torch.ones(*angle.shape[:-1], half, dtype=torch.complex128)
    factor[..., first_pair : first_pair + angle.shape[-1]] = torch.polar(torch.ones_like(angle), angle)
    result = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * factor.to(key.dtype.to_complex()))
    return (result if style == INTERLEAVED else result.mT).flatten(-2).to(dtype)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Softmax attention of [S, D] over [N, D], in the dtype of the operands and nothing else."""
    return (query @ key.mT * scale).softmax(-1) @ value


class Rig:
    """One stream, fed with random keys and values.

    Args:
        policy: a bound policy. target: the name of the target.
        tokens: rows of a frame. style, first_pair, pairs: where RoPE turns keys in time.
        strided: operands lie in memory as out of a fused projection.
        device: of pools, tables and operands; what is expected is computed on the CPU.
    """

    def __init__(
        self,
        policy: BoundPolicy,
        target: str = "sdpa",
        *,
        dtype: torch.dtype = DOUBLE,
        batch: int = 1,
        tokens: int = 3,
        head_dim: int = 6,
        value_dim: int | None = None,
        style: str = INTERLEAVED,
        first_pair: int = 0,
        pairs: int = 2,
        canonical: bool = False,
        strided: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.policy, self.target, self.dtype, self.batch, self.tokens = policy, target, dtype, batch, tokens
        self.head_dim, self.value_dim = head_dim, value_dim or head_dim
        self.style, self.first_pair, self.strided = style, first_pair, strided
        self.generator = torch.Generator().manual_seed(seed)
        self.theta = 0.1 + torch.rand(pairs, dtype=DOUBLE, generator=self.generator)
        self.scale = self.head_dim**-0.5
        self.stream = Stream(policy, batch)
        shape = PageShape(batch, tokens, self.head_dim, self.value_dim, dtype, self.device)
        self.pool = PoisonedPool(self.stream, shape, canonical=canonical)
        self.written: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def begin(self, start: int, frames: int, decide: Decider | None = None) -> Event:
        """A pass over frames start..start+frames-1 begins; nothing is computed yet."""
        event = self.stream.begin(start, frames, decide)
        self.pool.update()
        return event

    def run(self, start: int, frames: int, decide: Decider | None = None) -> list[tuple[Tensor, Tensor]]:
        """One pass through all layers; (query, output) of each layer."""
        self.begin(start, frames, decide)
        return [self.layer(layer) for layer in range(self.policy.layers)]

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """What one layer does in the pass that runs: (query, output)."""
        q, k, v = (self._random(width) for width in (self.head_dim, self.head_dim, self.value_dim))
        # Peaked attention: a fault in one key is not averaged away.
        q = q * 3
        self.write(layer, k, v)
        return q, self.attention(layer, q)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Writes the chunk's keys and values [B, S, H, D] of a layer into its pages."""
        pool, chunk, t = self.pool, self.stream.chunk, self.tokens
        assert chunk is not None
        torch.ops.headforce.write_pages(k, v, pool.k, pool.v, pool.pages[layer])
        for i, frame in enumerate(chunk.queries):
            rows = slice(i * t, (i + 1) * t)
            self.written[layer, frame] = (k[:, rows].cpu().clone(), v[:, rows].cpu().clone())

    def attention(self, layer: int, q: Tensor) -> Tensor:
        """What the target makes of a query [B, S, H, D]."""
        pool = self.pool
        tables = (pool.reads[layer], pool.runs[layer])
        rope = (self.theta.to(self.device), self.first_pair, self.style)
        out: Tensor = torch.ops.headforce.ragged_attention(q, pool.k, pool.v, *tables, *rope, self.scale, self.target)
        return out

    def expected(self, layer: int, q: Tensor, dtype: torch.dtype = DOUBLE) -> Tensor:
        """The output for `q`, every operation in `dtype`."""
        chunk, t, q = self.stream.chunk, self.tokens, q.cpu()
        assert chunk is not None
        out = torch.empty(*q.shape[:3], self.value_dim, dtype=dtype)
        for batch in range(self.batch):
            for head in range(self.policy.heads):
                for i, frame in enumerate(chunk.queries):
                    rows = slice(i * t, (i + 1) * t)
                    read = self._read(layer, batch, head, frame, dtype)
                    out[batch, rows, head] = (
                        attend(q[batch, rows, head].to(dtype), *read, self.scale) if read is not None else 0
                    )
        return out

    def _read(self, layer: int, batch: int, head: int, query: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        chunk, rule = self.stream.chunk, self.policy.rules[layer][head]
        assert chunk is not None
        memory = self.stream.lane(layer, head, batch).memory
        warmup = Warmup(rule.warmup_chunks, rule.warmup) if rule.warmup else None
        record = memory.explained() if memory else None
        amended = self.stream.amended.get(rule.text)
        reads = oracle.read(rule.rule, warmup, chunk, query, record, amended)
        reads.update({frame: frame for frame in chunk.queries if rule.at(chunk).reads_chunk})
        rows = [
            (*self._frame(layer, batch, head, frame), position - frame) for frame, position in sorted(reads.items())
        ]
        parts = oracle.read_parts(rule.rule, warmup, chunk, query, record, amended)
        for (store, *content), position in sorted(parts.items()):
            k, v, at = self._part((layer, batch, head), store, content)
            rows.append((k, v, position - at))
        if not rows:
            return None
        keys = [turned(k.to(dtype), shift * self.theta, self.first_pair, self.style) for k, _, shift in rows]
        return torch.cat(keys), torch.cat([v.to(dtype) for _, v, _ in rows])

    def _frame(self, layer: int, batch: int, head: int, frame: int) -> tuple[Tensor, Tensor]:
        """Keys as they were written, and values, [T, D]."""
        k, v = self.written[layer, frame]
        return k[batch, :, head], v[batch, :, head]

    def _part(self, cell: Cell, store: str, content: Sequence[Any]) -> tuple[Tensor, Tensor, int]:
        """Keys and values of a part of a store, and the frame at which its keys stand."""
        raise NotImplementedError

    def _random(self, width: int) -> Tensor:
        assert self.stream.chunk is not None
        shape = (self.batch, self.stream.chunk.frames * self.tokens, self.policy.heads, width)
        if not self.strided:
            return torch.randn(shape, dtype=DOUBLE, generator=self.generator).to(self.device, self.dtype)
        # As out of a fused projection with the heads in front: no dim is where a contiguous tensor has it.
        batch, rows, heads, _ = shape
        fused = torch.randn(batch, heads, 3, rows, width + 2, dtype=DOUBLE, generator=self.generator)
        fused = fused.to(self.device, self.dtype)
        return fused[:, :, 1, :, 1:-1].transpose(1, 2)


MIXED = {
    "collapsed": 'sink(1)@collapse(4) | stride(4, phase="query", last=2)@clamp(6) | window(1)',
    "contiguous": "(sink(1) | stride(3, phase=1, last=2) | window(2))@contiguous",
    "window": "window(4)",
    "nothing": "drop()",
}
"""Shifts of every kind, rules by query, heads with equal plans that are not neighbours, and heads without a past."""


def mixed(heads: int = 5) -> BoundPolicy:
    """`MIXED` over two layers of at least five heads, with a warm-up of one chunk."""
    classes = {name: parse_rule(rule) for name, rule in MIXED.items()}
    members = {
        0: {"collapsed": (0, 2), "window": (1, 4), "contiguous": (3,)},
        1: {"contiguous": (0, 1, 4), "nothing": (2,), "collapsed": (3,)},
    }
    return Policy(classes, heads=members, warmup=Warmup(1, parse_rule("window(3)"))).bind(layers=2, heads=heads)


def check(rig: Rig, start: int, frames: int) -> None:
    """The error of every layer is within the budget, `kernels.budget`; in float64 it is no more than rounding."""
    for layer, (query, out) in enumerate(rig.run(start, frames)):
        exact, out = rig.expected(layer, query), out.cpu()
        assert out.dtype == rig.dtype
        assert out.shape == exact.shape
        if rig.dtype == torch.float64:
            torch.testing.assert_close(out, exact, rtol=1e-11, atol=1e-11)
            continue
        budget = Budget(exact, limit(exact, rig.expected(layer, query, rig.dtype)))
        assert budget.holds(out), f"off by {budget.error(out):.3g}, and at most {budget.limit:.3g} is allowed"
