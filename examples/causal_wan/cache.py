"""The caches that a rollout keeps between forwards, and how new keys and values enter them.

The KV cache of a layer is a dict:

- ``k``, ``v``: [B, slots, heads, head_dim], one slot for each token, keys already rotated at their own frame;
- ``global_end_index``: tokens seen since the video began, a Python int;
- ``local_end_index``: tokens held, a Python int.

Every forward over a chunk writes the chunk's slots, noisy or clean. A repeated chunk falls on the same slots, so what
the last pass wrote is what later chunks see. A full cache with a window moves its newest tokens down over the oldest
ones, but for the sink, once for each new chunk. This is the protocol of Self-Forcing (arXiv 2506.08009).

The cross-attention cache of a layer is a dict with the text's ``k`` and ``v`` [B, text_len, heads, head_dim] and a bool
``is_init``. The first forward puts its own tensors in place of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .config import WanConfig

Cache = dict[str, Any]


class CacheError(ValueError):
    """A chunk does not fit into the KV cache."""


def append(cache: Cache, k: Tensor, v: Tensor, current_start: int, *, windowed: bool, sink_tokens: int) -> int:
    """Write the keys and values of a chunk, both [B, tokens, heads, head_dim]; returns the slot where they end.

    ``current_start`` is the chunk's first token, counted from the start of the video. Raises ``CacheError`` when a
    cache without a window is full, when sink and chunk together exceed the cache, or when the chunk neither follows
    nor repeats tokens that the cache has seen and still holds.
    """
    capacity, new = cache["k"].shape[1], k.shape[1]
    current_end = current_start + new
    seen, held = cache["global_end_index"], cache["local_end_index"]
    if current_start > seen:
        raise CacheError(f"the chunk starts at token {current_start}, but the video has only {seen} so far")

    evicted = 0
    if windowed and current_end > seen and held + new > capacity:
        evicted = held + new - capacity
        _roll(cache, sink_tokens, evicted, held)
    end = held + current_end - seen - evicted
    if end > capacity:
        raise CacheError(
            f"the cache holds {capacity} tokens and the chunk ends at slot {end}; "
            "give the model a window (local_attn_size) or a larger cache"
        )
    if end < new:
        raise CacheError(f"the chunk starts at token {current_start}, which has left the cache")

    cache["k"][:, end - new : end] = k
    cache["v"][:, end - new : end] = v
    cache["global_end_index"] = current_end
    cache["local_end_index"] = end
    return end


def _roll(cache: Cache, sink: int, evicted: int, held: int) -> None:
    """Drop the ``evicted`` tokens after the sink and close the gap."""
    kept = held - evicted - sink
    if kept < 0:
        raise CacheError(f"{held} tokens cannot lose {evicted} and keep a sink of {sink}; the chunk is too long")
    for name in ("k", "v"):
        # Source and target overlap, so the source is copied first.
        cache[name][:, sink : sink + kept] = cache[name][:, sink + evicted : sink + evicted + kept].clone()


def allocate_kv_cache(
    config: WanConfig, batch: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> list[Cache]:
    """An empty KV cache for every layer, with room for ``config.cache_frames`` frames."""
    shape = (batch, config.cache_frames * config.tokens_per_frame, config.num_heads, config.head_dim)
    return [
        {
            "k": torch.zeros(shape, dtype=dtype, device=device),
            "v": torch.zeros(shape, dtype=dtype, device=device),
            "global_end_index": 0,
            "local_end_index": 0,
        }
        for _ in range(config.num_layers)
    ]


def allocate_crossattn_cache(
    config: WanConfig, batch: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> list[Cache]:
    """An empty cross-attention cache for every layer."""
    shape = (batch, config.text_len, config.num_heads, config.head_dim)
    return [
        {
            "k": torch.zeros(shape, dtype=dtype, device=device),
            "v": torch.zeros(shape, dtype=dtype, device=device),
            "is_init": False,
        }
        for _ in range(config.num_layers)
    ]


def reset_caches(kv_cache: list[Cache], crossattn_cache: list[Cache]) -> None:
    """Make the caches ready for another video. Old keys and values stay in memory, but nothing reads them."""
    for cache in kv_cache:
        cache["global_end_index"] = 0
        cache["local_end_index"] = 0
    for cache in crossattn_cache:
        cache["is_init"] = False
