"""Self-attention over the cached past and the current chunk, and cross-attention to the text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache, append
from .config import WanConfig
from .rope import rope_angles, rotate


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis. Wan norms queries and keys over all heads together."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without a mask: q [B, L, heads, head_dim], k and v [B, S, heads, head_dim] -> like q."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class _Attention(nn.Module):
    """The projections that both kinds of attention have."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def query(self, x: Tensor) -> Tensor:
        """[B, L, dim] -> [B, L, heads, head_dim]"""
        return self.norm_q(self.q(x)).unflatten(-1, (self.num_heads, -1))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, dim] -> two of [B, L, heads, head_dim]"""
        k = self.norm_k(self.k(x)).unflatten(-1, (self.num_heads, -1))
        return k, self.v(x).unflatten(-1, (self.num_heads, -1))


class SelfAttention(_Attention):
    """Attention from a chunk of frames to itself and to the frames that the cache holds."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.windowed = config.local_attn_size != -1
        self.window = config.cache_frames
        self.sink_size = config.sink_size

    def forward(
        self, x: Tensor, rope: Tensor, grid: tuple[int, int, int], kv_cache: Cache, current_start: int
    ) -> Tensor:
        """x [B, tokens, dim] -> [B, tokens, dim]; writes the chunk into ``kv_cache``.

        ``rope`` is the table of ``rope_table``, ``grid`` the chunk's (frames, rows, columns), ``current_start`` its
        first token in the video.
        """
        tokens_per_frame = grid[1] * grid[2]
        # Each layer looks up its own angles, so that the graph of a single block holds all that its attention needs.
        cos, sin = rope_angles(rope, current_start // tokens_per_frame, grid)
        q = rotate(self.query(x), cos, sin)
        k, v = self.key_value(x)
        k = rotate(k, cos, sin)

        sink_tokens = self.sink_size * tokens_per_frame
        end = append(kv_cache, k, v, current_start, windowed=self.windowed, sink_tokens=sink_tokens)
        begin = max(0, end - self.window * tokens_per_frame)
        y = attend(q, kv_cache["k"][:, begin:end], kv_cache["v"][:, begin:end])
        return self.o(y.flatten(2))


class CrossAttention(_Attention):
    """Attention from a chunk of frames to the text."""

    def forward(self, x: Tensor, context: Tensor, crossattn_cache: Cache) -> Tensor:
        """x [B, tokens, dim], context [B, text_len, dim] -> [B, tokens, dim].

        ``context`` is read only while the cache is not initialised, once for each prompt.
        """
        q = self.query(x)
        if not crossattn_cache["is_init"]:
            crossattn_cache["k"], crossattn_cache["v"] = self.key_value(context)
            crossattn_cache["is_init"] = True
        return self.o(attend(q, crossattn_cache["k"], crossattn_cache["v"]).flatten(2))
