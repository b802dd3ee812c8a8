"""A model so small that a pass of it is all host: with it one measures what a compiled pass costs besides operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, HEAD_DIM, TOKENS, CHUNK = 2, 8, 2, 3
DIM = HEADS * HEAD_DIM
FRAMES = 96
"""Frames that the cache holds; it never evicts."""


class Attention(nn.Module):
    """Projections and norms, as both kinds of attention of Wan have them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))
        self.norm_q, self.norm_k = (nn.LayerNorm(DIM) for _ in range(2))

    def query(self, x: Tensor) -> Tensor:
        """[B, S, DIM] -> [B, S, HEADS, HEAD_DIM]"""
        return self.norm_q(self.q(x)).unflatten(-1, (HEADS, HEAD_DIM))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, twice."""
        k, v = self.norm_k(self.k(x)), self.v(x)
        return k.unflatten(-1, (HEADS, HEAD_DIM)), v.unflatten(-1, (HEADS, HEAD_DIM))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Without a mask."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention over a cache [B, rows, heads, D] with RoPE over frames, cross-attention, feed-forward network.

    What a compiled call of it costs grows with its modules and weights, so it has as many as a layer of Wan.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(DIM) for _ in range(3))
        self.ffn = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(approximate="tanh"), nn.Linear(DIM, DIM))
        self.modulation = nn.Parameter(torch.randn(1, 6, DIM))

    def turns(self, device: torch.device) -> None:
        """Tables of RoPE, which keep their precision."""
        angle = torch.outer(torch.arange(FRAMES).float(), torch.linspace(1, 0.1, HEAD_DIM // 2))
        self.register_buffer("cos", angle.cos().to(device))
        self.register_buffer("sin", angle.sin().to(device))

    def forward(self, x: Tensor, text: Tensor, cache: dict[str, Any], start: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation.chunk(6, dim=1)
        y = self.norm1(x) * (1 + scale1) + shift1
        q = self._rotated(self.self_attn.query(y), start // TOKENS)
        k, v = self.self_attn.key_value(y)
        k, end = self._rotated(k, start // TOKENS), start + x.shape[1]
        cache["k"][:, start:end] = k
        cache["v"][:, start:end] = v
        cache["global_end_index"] = end
        x = x + gate1 * self.self_attn.attend(q, cache["k"][:, :end], cache["v"][:, :end])
        x = x + self.cross_attn.attend(self.cross_attn.query(self.norm3(x)), *self.cross_attn.key_value(text))
        return x + gate2 * self.ffn(self.norm2(x) * (1 + scale2) + shift2)

    def _rotated(self, x: Tensor, frame: int) -> Tensor:
        frames = x.shape[1] // TOKENS
        cos, sin = (
            t[frame : frame + frames].view(frames, 1, 1, -1).expand(frames, TOKENS, 1, -1).reshape(-1, 1, HEAD_DIM // 2)
            for t in (self.cos, self.sin)
        )
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


class Miniature(nn.Module):
    """Layers one after the other. `kv_cache` is a list with one dict for each, as in Self-Forcing."""

    def __init__(self, layers: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(layers))
        self.to(device, dtype)
        for block in self.blocks:
            assert isinstance(block, Layer)
            block.turns(device)

    def forward(self, x: Tensor, text: Tensor, kv_cache: list[dict[str, Any]], current_start: int) -> Tensor:
        for block, cache in zip(self.blocks, kv_cache, strict=True):
            x = block(x, text, cache, current_start)
        return x

    def new_cache(self) -> list[dict[str, Any]]:
        """Empty caches."""
        shape, like = (1, FRAMES * TOKENS, HEADS, HEAD_DIM), next(self.parameters())
        return [{"k": like.new_zeros(shape), "v": like.new_zeros(shape), "global_end_index": 0} for _ in self.blocks]


class Played:
    """A stream of a miniature, a few chunks in: calling it repeats the last pass."""

    def __init__(self, model: Miniature, chunks: int = 4) -> None:
        self._model, self._cache, self._chunk = model, model.new_cache(), 0
        self._x = torch.randn_like(self._cache[0]["k"][:, : CHUNK * TOKENS].flatten(2))
        self._text = self._x[:, :2].clone()
        for _ in range(chunks):
            self()
            self.begin()

    def __call__(self) -> None:
        start = self._chunk * CHUNK * TOKENS
        self._model(self._x, self._text, kv_cache=self._cache, current_start=start)

    def begin(self) -> None:
        """The first pass of the next chunk."""
        self._chunk += 1
        self()
