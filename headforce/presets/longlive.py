"""LongLive: a short window behind a sink, for every head (arXiv 2509.22622)."""

from __future__ import annotations

from ..policy import Policy
from .registry import preset
from .self_forcing import self_forcing


@preset("longlive")
def longlive(window: int = 12, sink: int = 3) -> Policy:
    """Every head reads the first `sink` frames and the newest others, `window` frames with the current chunk.

    With the published sizes: frames 0 to 2, six recent ones, and a chunk of three. What a prompt switch does to the
    cache is not part of it.
    """
    return self_forcing(window=window, sink=sink)
