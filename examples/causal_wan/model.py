"""The causal Wan transformer: from noisy latents and a timestep for each frame to the flow.

Wan2.1 (github.com/Wan-Video/Wan2.1) made causal as in Self-Forcing (arXiv 2506.08009). Parameter names and shapes are
those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention
from .cache import Cache
from .config import WanConfig
from .rope import rope_table


class RopeTable(nn.Module):
    """Holds the table of ``rope_table``. It follows the model to a device, but keeps its precision."""

    def __init__(self, head_dim: int, positions: int) -> None:
        super().__init__()
        self.head_dim, self.positions = head_dim, positions
        self.register_buffer("table", rope_table(head_dim, positions), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RopeTable:
        super()._apply(fn, recurse)
        # `fn` may have rounded the table to bfloat16 or left it empty (`to_empty`); only its device counts.
        self.table = rope_table(self.head_dim, self.positions, self.table.device)
        return self


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale each frame of x [B, F * T, dim] by its own [B, F, 1, dim]."""
    return (x.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def gate(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply each frame of x [B, F * T, dim] by its own factor [B, F, 1, dim]."""
    return (x.unflatten(1, (factor.shape[1], -1)) * factor).flatten(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward network; the first and the last follow the timestep."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        rope: Tensor,
        grid: tuple[int, int, int],
        kv_cache: Cache,
        crossattn_cache: Cache,
        current_start: int,
    ) -> Tensor:
        """x [B, tokens, dim], time [B, F, 6, dim], context [B, text_len, dim] -> [B, tokens, dim]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.unsqueeze(1) + time).chunk(6, dim=2)
        y = self.self_attn(modulate(self.norm1(x), shift1, scale1), rope, grid, kv_cache, current_start)
        x = x + gate(y, gate1)
        x = x + self.cross_attn(self.norm3(x), context, crossattn_cache)
        y = self.ffn(modulate(self.norm2(x), shift2, scale2))
        return x + gate(y, gate2)


class Head(nn.Module):
    """The last norm, and the projection of each token to its patch."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, math.prod(config.patch_size) * config.channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, tokens, dim], time [B, F, 1, dim] -> [B, tokens, patch * channels]."""
        shift, scale = (self.modulation.unsqueeze(1) + time).chunk(2, dim=2)
        return self.head(modulate(self.norm(x), shift, scale))


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of the timesteps t [n] at ``dim / 2`` frequencies, float64 [n, dim]."""
    half = torch.arange(dim // 2, dtype=torch.float64, device=t.device)
    angle = torch.outer(t.double(), 10_000.0 ** -(half / (dim // 2)))
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class CausalWan(nn.Module):
    """The whole model. For inference: the caches are written in place, so run it without gradients."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.channels, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.rope = RopeTable(config.head_dim, config.rope_positions)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        kv_cache: list[Cache],
        crossattn_cache: list[Cache],
        current_start: int = 0,
    ) -> Tensor:
        """The flow (noise minus clean latents) of a chunk of F frames, [B, channels, F, height, width].

        - ``x``: noisy latents [B, channels, F, height, width]
        - ``t``: timestep of each frame [B, F], 1000 for pure noise and 0 for clean
        - ``context``: text embedding [B, text_len, text_dim], padded with zeros
        - ``kv_cache``, ``crossattn_cache``: one dict for each layer, see ``cache``; the chunk enters the first
        - ``current_start``: first token of the chunk, a Python int; a multiple of the tokens in a frame

        Raises ``CacheError`` when the chunk does not fit into the cache and ``ValueError`` when it reaches past the
        RoPE table or starts within a frame.
        """
        x = self.patch_embedding(x)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        if current_start % (grid[1] * grid[2]):
            raise ValueError(f"token {current_start} is not the first of a frame of {grid[1] * grid[2]} tokens")
        x = x.flatten(2).transpose(1, 2)

        time = self.time_embedding(sinusoids(t.flatten(), self.config.freq_dim).type_as(x))
        block_time = self.time_projection(time).unflatten(1, (6, -1)).unflatten(0, t.shape)
        if not all(cache["is_init"] for cache in crossattn_cache):
            context = self.text_embedding(context)

        shared: dict[str, Any] = {"time": block_time, "context": context, "rope": self.rope.table, "grid": grid}
        for block, kv, cross in zip(self.blocks, kv_cache, crossattn_cache, strict=True):
            x = block(x, **shared, kv_cache=kv, crossattn_cache=cross, current_start=current_start)

        return self._unpatchify(self.head(x, time.unflatten(0, t.shape).unsqueeze(2)), grid)

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, tokens, patch * channels] -> [B, channels, F, height, width]"""
        frames, rows, columns = grid
        _, p, q = self.config.patch_size
        x = x.view(x.shape[0], frames, rows, columns, p, q, self.config.channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], -1, frames, rows * p, columns * q)
