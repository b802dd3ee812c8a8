"""Head Forcing: anchors by their attention to the sink, local heads by that to the chunk (arXiv 2605.14487)."""

from __future__ import annotations

import math

import numpy as np

from ...errors import HeadforceError
from ..measured import Pass
from .registry import Found, method


@method("head_forcing", ("anchor", "local", "memory"), preset="head_forcing")
def head_forcing(
    passed: Pass, anchor: float = 0.25, local: float = 0.20, sink: int = 1, by_layer: bool = False
) -> Found:
    """Anchors have most attention on the sink; of the others, local heads have most on the chunk.

    Args:
        anchor: the share of all heads. local: the share of those that are no anchors. Both are rounded up.
        sink: how many of the oldest frames are the sink.
        by_layer: shares of every layer instead of the model as a whole. The paper does not say which it is; what was
            published about it pools all layers.

    Of equal heads the earlier ones go first. All others are memory heads.
    """
    if not (0 <= anchor <= 1 and 0 <= local <= 1) or sink < 1:
        raise HeadforceError(
            "HF-PROFILE-METHOD",
            site="head_forcing",
            found=f"anchor={anchor}, local={local}, sink={sink}",
            needed="shares from 0 to 1, and a sink of at least one frame",
        )
    on_sink, on_chunk = passed.on(passed.keys[:sink]), passed.on(passed.chunk.queries)
    cells = np.arange(on_sink.size).reshape(on_sink.shape)
    pools = list(cells) if by_layer else [cells.ravel()]
    names = np.full(on_sink.size, "memory", dtype=object)
    for pool in pools:
        order = pool[np.argsort(-on_sink.flat[pool], kind="stable")]
        anchors = math.ceil(anchor * len(pool))
        rest = np.sort(order[anchors:])
        rest = rest[np.argsort(-on_chunk.flat[rest], kind="stable")]
        names[order[:anchors]] = "anchor"
        names[rest[: math.ceil(local * len(rest))]] = "local"
    return Found.of(names.reshape(on_sink.shape), on_sink)
