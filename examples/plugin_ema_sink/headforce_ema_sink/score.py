"""`key_norm`: how long the keys of a segment are."""

from __future__ import annotations

from torch import Tensor

from headforce.lowering.state.score import Segments, score


@score("key_norm", best="lowest")
def key_norm(segments: Segments) -> Tensor:
    """The mean length of the keys of a segment over tokens and heads; short keys draw attention (arXiv 2406.11430).

    With it, what leaves the window is sorted before it is blended: `select(1, segments=4, score=key_norm,
    source=evicted(recent))` keeps the shortest keys as they are, beside the sink.
    """
    return segments.keys.float().norm(dim=-1).mean(dim=(1, 3))
