"""What is measured on a machine: the operators of a pass, each by itself, at a given size."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.rotation import INTERLEAVED, turn
from ..lowering import ops  # noqa: F401  registers the operators
from ..lowering.pool import PagePool, PageShape
from ..lowering.stream import Stream
from ..policy import Policy
from .between import WIDTH, Ends, Rest

Run = Callable[[], object]

COLD = 64 << 20
"""Bytes of weights among which products take turns on a CPU, so that none is still in a cache, as in a model."""


@dataclass(frozen=True)
class Samples:
    """Makes functions to be timed. Sizes are those of the tables of `Machine`."""

    device: torch.device
    dtype: torch.dtype
    target: str

    def linear(self, rows: int, weight: int) -> list[Run]:
        """A product of `rows` rows with a square weight of about `weight` numbers."""
        side = max(1, round(weight**0.5))
        copies = max(1, min(64, COLD // (side * side * self.dtype.itemsize)))
        x = self._random(rows, side)
        layers = [(self._random(side, side), self._random(side)) for _ in range(copies)]
        return [lambda w=w, b=b: F.linear(x, w, b) for w, b in layers]  # type: ignore[misc]

    def dense(self, head_dim: int, heads: int, rows: int, keys: int) -> list[Run]:
        """`scaled_dot_product_attention` as models call it, on tensors [B, S, H, D]."""
        q, k, v = (self._random(1, n, heads, head_dim).transpose(1, 2) for n in (rows, keys, keys))
        return [lambda: F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)]

    def ragged(self, head_dim: int, heads: int, rows: int, ratio: int) -> list[Run]:
        """The operator of headforce on chunks of three frames, with `ratio` times as many keys as queries."""
        rule = "drop()" if ratio == 1 else f"window({3 * ratio - 3})"
        pool = self._pool(heads, head_dim, max(1, rows // 3), rule, 3 * ratio)
        query = self._random(1, 3 * max(1, rows // 3), heads, head_dim)
        return [lambda: self._attend(query, pool, pool.reads[0])]

    def launch(self) -> list[Run]:
        """The same operator with nothing to read."""
        pool = self._pool(4, 16, 1, "window(2)", 6)
        query, reads = self._random(1, 1, 4, 16), pool.reads[0].clone()
        reads[:, 3:6] = 0
        return [lambda: self._attend(query, pool, reads)]

    def write(self, numbers: int) -> list[Run]:
        """The page write of K and V of a chunk that together have about so many numbers."""
        heads, dim, frames = 4, 64, 3
        rows = max(1, numbers // (2 * heads * dim * frames))
        pool = self._pool(heads, dim, rows, "window(2)", 6)
        k, v = (self._random(1, frames * rows, heads, dim) for _ in range(2))
        return [lambda: torch.ops.headforce.write_pages(k, v, pool.k, pool.v, pool.pages[0])]

    def copy(self, size: int) -> list[Run]:
        """A copy that reads and writes `size` bytes together."""
        source, goal = (self._random(max(1, size // 2 // self.dtype.itemsize)) for _ in range(2))
        return [lambda: goal.copy_(source)]

    def turn(self, numbers: int) -> list[Run]:
        """Keys of so many numbers turned to another position."""
        keys = self._random(4, max(1, numbers // 256), 64)
        theta = torch.linspace(1, 0.1, 12, dtype=torch.float64, device=self.device)
        return [lambda: turn(keys, theta, 0, INTERLEAVED)]

    def rest(self, numbers: int) -> Rest:
        """What a layer does besides products and attention."""
        return Rest(max(1, numbers // WIDTH), self._random)

    def activation(self, numbers: int) -> Run:
        """The activation of a feed-forward network."""
        x = self._random(max(1, numbers // 64), 64)
        return lambda: F.gelu(x, approximate="tanh")

    def ends(self, numbers: int) -> Ends:
        """What comes before and behind the layers."""
        return Ends(max(1, numbers // WIDTH), self._random)

    def chunk(self, rules: int, layers: int, heads: int) -> Run:
        """Planning chunk after chunk, and uploading its tables, for so many distinct rules."""
        names = {f"c{i}": f"sink({1 + i})@collapse(40) | window({2 + i})" for i in range(rules)}
        members: dict[str, dict[str, list[int]]] = {str(layer): {} for layer in range(layers)}
        for cell in range(layers * heads):
            members[str(cell // heads)].setdefault(f"c{cell % rules}", []).append(cell % heads)
        policy = Policy.loads(json.dumps({"headforce": 1, "classes": names, "heads": members}))
        stream = Stream(policy.bind(layers=layers, heads=heads))
        pool = PagePool(stream, PageShape(1, 1, 1, 1, self.dtype, self.device))
        starts = iter(range(0, 1 << 30, 3))

        def run() -> None:
            stream.begin(next(starts), 3)
            pool.update()

        for _ in range(2 * rules + 20):  # until every window is full and every region as large as it gets
            run()
        return run

    def _attend(self, query: Tensor, pool: PagePool, reads: Tensor) -> Tensor:
        theta = torch.zeros(0, dtype=torch.float64, device=self.device)
        scale = query.shape[-1] ** -0.5
        arguments = (query, pool.k, pool.v, reads, pool.runs[0], theta, 0, INTERLEAVED, scale, self.target)
        out: Tensor = torch.ops.headforce.ragged_attention(*arguments)
        return out

    def _pool(self, heads: int, head_dim: int, rows: int, rule: str, frames: int) -> PagePool:
        """Pages of a layer whose heads all have one rule, more than `frames` frames in."""
        policy = Policy.loads(json.dumps({"headforce": 1, "classes": {"all": rule}, "default": "all"}))
        stream = Stream(policy.bind(layers=1, heads=heads))
        pool = PagePool(stream, PageShape(1, rows, head_dim, head_dim, self.dtype, self.device))
        for start in range(0, frames + 6, 3):
            stream.begin(start, 3)
            pool.update()
        for pages in (pool.k, pool.v):
            pages.normal_()
        return pool

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)
