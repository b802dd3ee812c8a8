"""Self-Forcing and the models that kept its code: Causal-Forcing, and others with the same `causal_model.py`."""

from __future__ import annotations

from torch import nn

from ...policy import Rule
from .adapter import Call, adapter
from .dict_cache import window_rule
from .refused import COUNTED_FROM_FIRST_ROW
from .wan import WanAdapter, variables_of
from .wan_example import wan_example


@adapter("self-forcing")
class SelfForcingAdapter(WanAdapter):
    """`CausalWanModel` of Self-Forcing (github.com/guandeh17/Self-Forcing), unmodified."""

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        # Those that only Krea, Reward Forcing and LongLive 2 have.
        relatives = ("fuse_projections", "compression_alpha", "global_sink_size")
        its_own = hasattr(attention, "max_attention_size") and hasattr(attention, "sink_size")
        otherwise = COUNTED_FROM_FIRST_ROW in variables_of(attention)
        return its_own and not otherwise and not any(hasattr(attention, name) for name in relatives)

    def example(self, kind: type[nn.Module]) -> tuple[nn.Module, list[Call]] | None:
        return wan_example(self, kind, window=6, indexed=True)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        attention = model.blocks[0].self_attn  # type: ignore[union-attr, index]
        return window_rule(
            held=cache_rows // tokens_per_frame,
            read=int(attention.max_attention_size) // tokens_per_frame,
            sink=int(attention.sink_size),
        )
