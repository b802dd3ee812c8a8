"""A model that headforce does not know, and the adapter that makes it known, as in docs/your-own-model.md."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headforce.kvpass.capture import Adapter, LayerCache, adapter
from headforce.policy import Rule, parse_rule
from headforce.testing import zoo

# --- the model, as somebody wrote it ----------------------------------------------------------------------------------


class TwoBlocks(nn.Module):
    """Two layers of self-attention. `memory` has a dict for each: `k` and `v`, and how many rows were seen so far."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(zoo.SelfAttention(rope="stacked", protocol="append") for _ in range(2))

    def forward(self, x: Tensor, memory: list[dict[str, Any]], start: int) -> Tensor:
        """x is [B, S, C]: whole frames, the first of which begins at row `start` of the video."""
        for block, cache in zip(self.blocks, memory, strict=True):
            x = x + block(x, cache, start)
        return x

    def new_memory(self) -> list[dict[str, Any]]:
        """Empty caches."""
        return [block.new_cache() for block in self.blocks]


# --- the adapter ------------------------------------------------------------------------------------------------------


class Memory(LayerCache):
    """The dict of one layer."""

    def __init__(self, cache: dict[str, Any]) -> None:
        self.cache = cache

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.cache["k"], self.cache["v"]

    def replace(self, k: Tensor, v: Tensor) -> None:
        self.cache["k"], self.cache["v"] = k, v

    def give_back(self, k: Tensor, v: Tensor) -> None:
        self.cache["k"], self.cache["v"] = k, v

    def is_empty(self) -> bool:
        return self.cache["seen"] == 0

    def owner(self) -> object:
        return self.cache


@adapter("two-blocks")
class TwoBlocksAdapter(Adapter):
    """`TwoBlocks`: nothing has to be replaced for tracing; its caches are a list of dicts under another name."""

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, TwoBlocks)

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        return [Memory(cache) for cache in given.get("memory") or []]

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        newest = cache_rows // tokens_per_frame - zoo.SINK_FRAMES
        return parse_rule(f"sink({zoo.SINK_FRAMES}) | span({newest})")


# --- a video ----------------------------------------------------------------------------------------------------------


def play(model: Any) -> list[Tensor]:
    """Two videos in a row with the same caches, the second so long that they evict; one pass for each chunk."""
    original = getattr(model, "_orig_mod", model)
    memory = original.new_memory()
    videos = []
    for chunks in (1, 4):
        for cache in memory:
            cache["held"] = cache["seen"] = 0
        videos.append(torch.cat([model(x, memory, start) for x, start in zoo.inputs(chunks, passes=1)], dim=1))
    return videos
