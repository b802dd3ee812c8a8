"""CausVid: a cache without an end, whose place to write is an argument of the call."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ...policy import Rule
from .adapter import Call, LayerCache, adapter
from .dict_cache import DictCache, window_rule
from .wan import WanAdapter
from .wan_example import wan_example


class UnindexedDictCache(DictCache):
    """A layer's dict that holds K and V alone; that another video begins shows in the clock, at frame 0."""

    def __init__(self, cache: dict[str, Any], *, adopted: bool) -> None:
        super().__init__(cache)
        self._unseen = not adopted

    def is_empty(self) -> bool:
        # Asked when the cache is found, and then before every pass, when it may be a shell.
        unseen, self._unseen = self._unseen, False
        return unseen and not bool(self.cache["k"].any())


@adapter("causvid")
class CausVidAdapter(WanAdapter):
    """`CausalWanModel` of CausVid (github.com/tianweiy/CausVid), unmodified."""

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return "current_end" in inspect.signature(type(attention).forward).parameters

    def layer_cache(self, cache: dict[str, Any], adopted: bool) -> LayerCache:
        return UnindexedDictCache(cache, adopted=adopted)

    def example(self, kind: type[nn.Module]) -> tuple[nn.Module, list[Call]] | None:
        return wan_example(self, kind, window=None, indexed=False)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        held = cache_rows // tokens_per_frame
        return window_rule(held=held, read=held, sink=0)
