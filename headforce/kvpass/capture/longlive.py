"""LongLive, version 1: Self-Forcing's model with a cache that is written once all layers have run.

Its interactive pipeline switches prompts by itself: the text caches are emptied, and the newest frames, as many as the
window holds, run again in one pass. With `global_sink` that pass leaves the rows of the sink alone: behind it there is
no room for all frames that are sent, and the first of them are run for nothing. Without it, `k` and `v` are emptied
before, and the first frames that are sent take the place of the sink for good.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from .adapter import Change, adapter
from .patches import patched
from .self_forcing import SelfForcingAdapter

SINK_TOO = "sink_recache_after_switch"


@adapter("longlive")
class LongLiveAdapter(SelfForcingAdapter):
    """`CausalWanModel` of LongLive 1 (github.com/NVlabs/LongLive, branch v1.0), unmodified."""

    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        told = inspect.signature(type(attention).forward).parameters
        return super().knows(model, attention) and SINK_TOO in told

    def change(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Change | None:
        if self.arguments(model, args, kwargs).get(SINK_TOO, False):
            return Change.ANEW
        texts = self.text_caches(model, args, kwargs)
        return Change.PROMPT if texts and not any(text["is_init"] for text in texts) else None

    @contextlib.contextmanager
    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        with (
            super().shims(model, args, kwargs),
            # The pipeline makes a mask at a switch, and no call with a cache looks at it: no reason to compile again.
            patched(vars(model), "block_mask", None),
        ):
            yield
