"""Krea realtime: Self-Forcing's protocol at 14B, with cache indices that are Python ints.

Its server pins positions: before every block it empties the cache, fills it in one pass from the latents of the frames
that are kept (flex attention that reads no cache), and denoises the block right behind them. The clock shows that as
it is: the emptied indices begin a stream, the filling pass is its first chunk, the block its second. So what a policy
calls frame 0 is the first frame that the server kept, and no rule can name a frame that the server did not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .adapter import Call, LayerCache, adapter
from .dict_cache import INDICES, DictCache
from .patches import patched
from .self_forcing import SelfForcingAdapter
from .wan import namespace_of


class NumberedDictCache(DictCache):
    """A layer's dict whose indices are Python ints, but for tensors that the pipeline puts there for another video."""

    def __init__(self, cache: dict[str, Any]) -> None:
        super().__init__(cache)
        for name in INDICES:
            if isinstance(cache[name], Tensor):
                cache[name] = int(cache[name].item())


@adapter("krea")
class KreaAdapter(SelfForcingAdapter):
    """`CausalWanModel` of Krea realtime (github.com/krea-ai/realtime-video), unmodified."""

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "fuse_projections") and hasattr(attention, "max_attention_size")

    def example(self, kind: type[nn.Module]) -> tuple[nn.Module, list[Call]] | None:
        return None  # its models run on CUDA alone

    def layer_cache(self, cache: dict[str, Any], adopted: bool) -> LayerCache:
        return NumberedDictCache(cache)

    @contextlib.contextmanager
    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        block: Any = next(model.blocks.children())  # type: ignore[union-attr]
        cross = namespace_of(type(block.cross_attn).forward)
        attention = namespace_of(namespace_of(type(block.self_attn).forward)["attention"])
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().shims(model, args, kwargs))
            for namespace in (cross, attention):
                for kernels in ("SAGEATTN", "FLASH_ATTN_2", "FLASH_ATTN_3"):
                    stack.enter_context(patched(namespace, f"{kernels}_AVAILABLE", False))
            yield
