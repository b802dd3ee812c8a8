"""A model whose heads are built to be something: on a sink, local, in waves of several periods, or broad.

Every head has a constant query and key and noise on both. RoPE makes a score of the distance in frames of it: a pair
that turns once in P frames gives cos(2 pi distance / P), and a pair that does not turn the same for all frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.causal_wan import append, rotate
from examples.causal_wan.attention import attend
from examples.causal_wan.rope import axis_pairs, rope_angles

HEAD_DIM = 22
PERIODS = (64.0, 3.0, 4.0, 5.0, 6.0)
"""In frames, of the pairs that turn with the frame."""
STILL = HEAD_DIM // 2 - 1
"""A pair that does not turn."""
GRID = (2, 2)
TOKENS = GRID[0] * GRID[1]
WINDOW = 21
NOISE = 0.3

KINDS = ("sink", "local", "wave3", "wave4", "wave5", "wave6", "broad", "negative")


def table() -> Tensor:
    """Cosine and sine [positions, pairs, 2], for `rope_angles`."""
    assert axis_pairs(HEAD_DIM)[0] == len(PERIODS)
    rates = torch.zeros(HEAD_DIM // 2, dtype=torch.float64)
    rates[: len(PERIODS)] = 2 * math.pi / torch.tensor(PERIODS, dtype=torch.float64)
    rates[len(PERIODS) : STILL] = 0.3
    angle = torch.outer(torch.arange(128, dtype=torch.float64), rates)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def content(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, and what the first frame adds to the key, so that scores are as the kind says."""
    query, key, first = torch.zeros(3, HEAD_DIM)
    if kind == "sink":
        query[2 * STILL], first[2 * STILL] = 1.0, 7.0
    elif kind == "local":
        query[0 : 2 * len(PERIODS) : 2] = 1.0
        key[0 : 2 * len(PERIODS) : 2] = 2.0
    elif kind.startswith("wave"):
        pair = PERIODS.index(float(kind[4:]))
        query[2 * pair], key[2 * pair] = 1.0, 2.5
    else:
        query[2 * STILL], key[2 * STILL] = 1.0, 2.0 if kind == "broad" else -2.0
    return query, key * HEAD_DIM**0.5, first * HEAD_DIM**0.5


class PlantedAttention(nn.Module):
    def __init__(self, kinds: list[str], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads = len(kinds)
        dim = self.heads * HEAD_DIM
        for name, parts in zip(("q", "k", "first"), zip(*map(content, kinds), strict=True), strict=True):
            self.register_buffer(name, torch.cat(parts))
        for name in ("wq", "wk", "wv"):
            weight = torch.randn(16, dim, generator=generator) / 4.0
            self.register_buffer(name, weight * (1.0 if name == "wv" else NOISE))

    def forward(self, x: Tensor, rope: Tensor, kv_cache: dict, current_start: int) -> Tensor:
        """x [B, tokens, 17]: noise, and in the last channel 1 for tokens of the first frame."""
        cos, sin = rope_angles(rope, current_start // TOKENS, (x.shape[1] // TOKENS, *GRID))
        noise, first = x[..., :16], x[..., 16:]
        q = (noise @ self.wq + self.q).unflatten(-1, (self.heads, -1))
        k = (noise @ self.wk + self.k + first * self.first).unflatten(-1, (self.heads, -1))
        v = (noise @ self.wv).unflatten(-1, (self.heads, -1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        end = append(kv_cache, k, v, current_start, windowed=True, sink_tokens=TOKENS)
        begin = max(0, end - WINDOW * TOKENS)
        return attend(q, kv_cache["k"][:, begin:end], kv_cache["v"][:, begin:end]).flatten(2)


class Planted(nn.Module):
    """Layers side by side, over a cache that keeps the first frame: `kinds[layer][head]` says what a head is."""

    sink_size = 1

    def __init__(self, kinds: list[list[str]], seed: int = 0) -> None:
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(PlantedAttention(of, seed + i) for i, of in enumerate(kinds))
        self.register_buffer("rope", table())

    def forward(self, x: Tensor, kv_cache: list[dict], current_start: int) -> Tensor:
        return sum(
            layer(x, self.rope, cache, current_start).mean(-1)
            for layer, cache in zip(self.layers, kv_cache, strict=True)
        )

    def caches(self) -> list[dict]:
        return [
            {
                "k": torch.zeros(1, WINDOW * TOKENS, layer.heads, HEAD_DIM),
                "v": torch.zeros(1, WINDOW * TOKENS, layer.heads, HEAD_DIM),
                "global_end_index": 0,
                "local_end_index": 0,
            }
            for layer in self.layers
        ]


def rollout(model: nn.Module, seed: int = 0, chunks: int = 8) -> Tensor:
    """One video of chunks of 3 frames, one pass each."""
    generator, caches, out = torch.Generator().manual_seed(seed), model.caches(), []
    for chunk in range(chunks):
        x = torch.randn(1, 3 * TOKENS, 17, generator=generator)
        x[..., 16] = 0.0
        if chunk == 0:
            x[:, :TOKENS, 16] = 1.0
        with torch.no_grad():
            out.append(model(x, kv_cache=caches, current_start=chunk * 3 * TOKENS))
    return torch.cat(out, dim=1)


def planted(layers: int = 2, each: int = 8, seed: int = 0) -> Planted:
    """`each` heads of every kind in every layer, in an order of the layer's own."""
    generator = torch.Generator().manual_seed(seed)
    every = [kind for kind in KINDS for _ in range(each)]
    return Planted([[every[i] for i in torch.randperm(len(every), generator=generator)] for _ in range(layers)], seed)


def example() -> tuple[Planted, object]:
    """A target of `headforce profile`: one layer with a head of every kind. It talks, as models do."""
    print("loading")
    return planted(layers=1, each=1), rollout
