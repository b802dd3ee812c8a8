"""LongLive 2: LongLive's deferred protocol, with a sink that is read in front of a window that left it behind.

Between passes its pipeline may pin the chunk of a scene cut, or drop all but the sink before the next one; both move
rows that no graph shows, and the pass that finds them moved is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ...errors import HeadforceError
from ...policy import Rule, parse_rule
from .adapter import Call, LayerCache, adapter
from .boxes import BoxedDictCache
from .dict_cache import CACHE_ARGUMENT, INDICES, window_rule
from .patches import patched
from .self_forcing import SelfForcingAdapter
from .wan import namespace_of

GRID_META = dict.fromkeys(("frame_seqlen", "num_new_frames", "h", "w"), 0)
"""In place of the dict through which the wrapper hands over grid and indices, of which Dynamo would make constants. It
has no indices, so the model reads them off the caches."""


class PinningDictCache(BoxedDictCache):
    """A layer's dict that also says which rows are pinned."""

    indices = (*INDICES, "pinned_start", "pinned_len")


@adapter("longlive-2")
class LongLive2Adapter(SelfForcingAdapter):
    """`CausalWanModel` of LongLive 2 (github.com/NVlabs/LongLive, `wan_5b`), unmodified."""

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        return hasattr(attention, "global_sink_size") and hasattr(attention, "max_attention_size")

    def example(self, kind: type[nn.Module]) -> tuple[nn.Module, list[Call]] | None:
        return None  # its wrapper hands the indices to the model, through a module's dict

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        if getattr(model, "use_relative_rope", False):
            raise HeadforceError(
                "HF-CLOCK",
                site=type(model).__qualname__,
                found="use_relative_rope, with which RoPE counts from the first row that is read",
                needed="keys and queries rotated at the frames they have in the video",
                hint="Set use_relative_rope to false, as the released configurations do.",
            )
        given = self.arguments(model, args, kwargs).get(CACHE_ARGUMENT) or []
        if any(isinstance(cache, Mapping) and cache.get("quantized") for cache in given):
            raise HeadforceError(
                "HF-CACHE-FORM",
                site=type(model).__qualname__,
                found="a quantised KV cache (kv_quant)",
                needed="a K and a V tensor for each layer",
                hint="Set kv_quant to false.",
            )
        return super().caches(model, args, kwargs)

    def layer_cache(self, cache: dict[str, Any], adopted: bool) -> LayerCache:
        return PinningDictCache(cache, adopted=adopted)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        attention = model.blocks[0].self_attn  # type: ignore[union-attr, index]
        held, read = (int(rows) // tokens_per_frame for rows in (cache_rows, attention.max_attention_size))
        sink = max(int(attention.sink_size), int(attention.global_sink_size))
        if sink and read < held:
            return parse_rule(f"sink({sink}) | span({read - sink})")
        return window_rule(held=held, read=read, sink=sink)

    @contextlib.contextmanager
    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        block: Any = next(model.blocks.children())  # type: ignore[union-attr]
        causal = namespace_of(type(block.self_attn).forward)
        with (
            super().shims(model, args, kwargs),
            # A kernel for RoPE is no operation that can be read, and a table kept from an earlier pass has no clock.
            patched(causal, "_CURRENT_GRID_META", GRID_META),
            patched(causal, "_TRITON_ROPE_ENABLED", False),
            patched(causal, "_FREQS_I_CACHE_ENABLED", False),
        ):
            yield
