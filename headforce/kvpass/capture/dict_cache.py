"""Models whose forward takes `kv_cache`, a list with one dict of `k` and `v` for each layer, written in place.

This is the protocol of Self-Forcing (arXiv 2506.08009) and of the models that grew out of it. Their dicts also hold
`global_end_index` and `local_end_index`; here they are Python ints. Dicts may do without: then nothing but the frame of
a pass says that a video begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from ...errors import HeadforceError
from ...policy import Rule, parse_rule
from .adapter import Adapter, LayerCache, adapter

INDICES = ("global_end_index", "local_end_index")
CACHE_ARGUMENT = "kv_cache"
TEXT_CACHE_ARGUMENT = "crossattn_cache"


class DictCache(LayerCache):
    """One layer's dict."""

    def __init__(self, cache: dict[str, Any]) -> None:
        self.cache = cache

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.cache["k"], self.cache["v"]

    def replace(self, k: Tensor, v: Tensor) -> None:
        self.cache["k"], self.cache["v"] = k, v

    def give_back(self, k: Tensor, v: Tensor) -> None:
        self.cache["k"], self.cache["v"] = k, v

    def is_empty(self) -> bool | None:
        end = self.cache.get(INDICES[0])
        return None if end is None else int(end) == 0

    def forget(self) -> bool:
        known = [name for name in INDICES if name in self.cache]
        for name in known:
            index = self.cache[name]
            if isinstance(index, int):
                self.cache[name] = 0
            else:
                index.zero_()
        return bool(known)

    def owner(self) -> object:
        return self.cache


@adapter("dict-cache")
class DictCacheAdapter(Adapter):
    """Python-int indices: the model can be traced as it is, and nothing has to be replaced but the tensors."""

    def matches(self, model: nn.Module) -> bool:
        return CACHE_ARGUMENT in inspect.signature(model.forward).parameters

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
        return [DictCache(cache) for cache in layer_dicts(bound.arguments.get(CACHE_ARGUMENT))]

    def text_caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs)
        return list(bound.arguments.get(TEXT_CACHE_ARGUMENT) or [])

    def forget_text(self, caches: Sequence[Any]) -> None:
        forget_text(caches)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        sink = next((int(m.sink_size) for m in model.modules() if hasattr(m, "sink_size")), 0)
        held = cache_rows // tokens_per_frame
        return window_rule(held=held, read=held, sink=sink)


def layer_dicts(given: Any) -> list[dict[str, Any]]:
    """The dict of every layer, as a call passes them; none for None. HF-ADOPT for anything of another form."""
    if given is None:
        return []
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    for place, cache in enumerate(given if listed else [given]):
        tensors = [isinstance(cache, MutableMapping) and isinstance(cache.get(name), Tensor) for name in ("k", "v")]
        if not listed or not all(tensors):
            raise HeadforceError(
                "HF-ADOPT",
                site=f"{CACHE_ARGUMENT}[{place}]" if listed else CACHE_ARGUMENT,
                found=_described(cache),
                needed="a list with one dict for each layer, with tensors k and v",
            )
    return list(given)


def _described(cache: Any) -> str:
    if not isinstance(cache, Mapping):
        return f"a {type(cache).__name__}"
    names = ", ".join(f"{name}: {type(value).__name__}" for name, value in cache.items())
    return f"a {type(cache).__name__} of {names or 'nothing'}"


def forget_text(caches: Sequence[dict[str, Any]]) -> None:
    """Cross-attention of this protocol computes K and V of the text when `is_init` is false."""
    for cache in caches:
        cache["is_init"] = False


@lru_cache(maxsize=64)  # every layer asks in every pass
def window_rule(*, held: int, read: int, sink: int) -> Rule:
    """What a cache of `held` frames, the chunk included, gives a model that reads its newest `read` of them.

    A full cache drops its oldest frames but for the first `sink`, which lie in front of the others.
    """
    if not sink:
        return parse_rule(f"span({min(held, read)})")
    if read <= held - sink:
        return parse_rule(f"span({read})")
    if read < held:
        raise HeadforceError(
            "HF-NATIVE",
            found=f"a model that reads the newest {read} of {held} frames, of which the first {sink} are a sink",
            needed="a window that holds all of the sink or nothing of it",
        )
    return parse_rule(f"sink({sink}) | span({held - sink})")
