"""Dummy Forcing: heads that need no past get next to none (arXiv 2601.20499)."""

from __future__ import annotations

from os import PathLike

from ..policy import Policy, Warmup, parse_rule
from .labels import Labels, need_classes
from .registry import preset

CLASSES = ("sink", "neighbor", "dummy")


@preset("dummy_forcing")
def dummy_forcing(
    labels: Labels | str | PathLike[str], context: int = 3, warmup_chunks: int = 2, packed: int = 1
) -> Policy:
    """Sink heads read frame 0, neighbor heads the newest `context` frames, dummy heads the newest `packed`.

    During the first `warmup_chunks` chunks every head reads frame 0 and the newest `context` frames. The code counts
    contexts in chunks of three frames and classifies at chunk 1 or 2, after which the warm-up ends: `warmup_chunks` is
    that chunk plus one, `context` is frames.

    Args:
        labels: which heads are what (classes `sink`, `neighbor`, `dummy`; heads that are not named are `dummy`).

    Followed is the code (commit 28128ed6) where it differs from the paper: neighbor heads have no sink, and dummy heads
    get one frame back ("context packing"). Not followed: the code keeps frame 0 in its cache of sinks alone, so that
    neighbor heads miss it even where their context reaches back to it, in the first chunks. The paper's classification
    while the video runs is not part of this preset.
    """
    found = need_classes(labels, CLASSES, "dummy")
    classes = {
        "sink": parse_rule("sink(1)"),
        "neighbor": parse_rule(f"window({context})"),
        "dummy": parse_rule(f"window({packed})" if packed else "drop()"),
    }
    warmup = Warmup(warmup_chunks, parse_rule(f"sink(1) | window({context})"))
    return Policy(classes, default="dummy", heads=found.heads_besides("dummy"), warmup=warmup)
