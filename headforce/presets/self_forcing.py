"""Self Forcing: the newest frames, for every head (arXiv 2506.08009)."""

from __future__ import annotations

from ..policy import Policy, parse_rule
from .registry import preset


@preset("self_forcing")
def self_forcing(window: int = 21, sink: int = 0) -> Policy:
    """Every head reads the newest `window` frames, the current chunk and the first `sink` frames counted among them.

    This is the published baseline as a policy of its own; `native()` is whatever the model at hand does. Keys keep the
    frame that they were made at.
    """
    newest = f"span({window - sink})"
    return Policy({"all": parse_rule(f"sink({sink}) | {newest}" if sink else newest)}, default="all")
