"""Dummy Forcing: heads that need no past get next to none (arXiv 2601.20499)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from ..policy import Classify, Policy, Warmup, parse_rule
from .labels import Labels, need_classes
from .registry import need_quirks, preset

CLASSES = ("sink", "neighbor", "dummy")


@preset("dummy_forcing")
def dummy_forcing(
    labels: Labels | str | PathLike[str] | None = None,
    num_dummy: int | float = 0.5,
    context: int = 3,
    classify_at: int = 1,
    packed: int = 1,
    first_frames: int = 1,
    queries: float = 0.25,
    seed: int = 0,
    quirks: Sequence[str] = (),
) -> Policy:
    """Sink heads read frame 0, neighbor heads the newest `context` frames, dummy heads the newest `packed`.

    Up to chunk `classify_at` every head reads frame 0 and the newest `context` frames. In that chunk heads are
    classified, once for each video, from the attention of its last pass: exactly `num_dummy` heads of the model are
    dummies, those that lose least by it.

    Args:
        labels: which heads are what (classes `sink`, `neighbor`, `dummy`; heads that are not named are `dummy`), where
            they are not to be classified while the video is made.
        num_dummy: heads of the model, or a share of them (0.5 is the paper's 180 of 360).
        context, packed: frames. The code's `local_context_length` counts chunks of three.
        classify_at: index of a chunk: the code's `ar_start`, 1 or 2.
        first_frames: frames from the oldest on whose attention makes a head a sink.
        queries, seed: the share of query rows that is measured, and the seed of their choice. The code takes a ninth or
            a third of them, at random and with replacement; the paper says a quarter.
        quirks: defects of the code that are wanted. `no_first_frame`: neighbor heads miss frame 0 even where their
            context reaches back to it, since the code keeps it in its cache of sinks alone.

    Followed is the code (commit 28128ed6) where it differs from the paper: neighbor heads have no sink, dummy heads get
    one frame back ("context packing"), and masses are divided by their sums over all heads before they are compared.
    Not followed: rows from the global random state, so that labels cannot be had twice; and the partition at
    `ar_start=2`, where two neighbor frames count as first (`first_frames=3` is that).
    """
    missed = " & since(1)" * ("no_first_frame" in need_quirks(quirks, "no_first_frame"))
    classes = {
        "sink": parse_rule("sink(1)"),
        "neighbor": parse_rule(f"window({context}){missed}"),
        "dummy": parse_rule(f"window({packed})" if packed else "drop()"),
    }
    warmup = Warmup(classify_at + 1, parse_rule(f"sink(1) | window({context})"))
    if labels is None:
        classify = Classify(classify_at, num_dummy, *CLASSES, first_frames=first_frames, queries=queries, seed=seed)
        return Policy(classes, warmup=warmup, classify=classify)
    found = need_classes(labels, CLASSES, "dummy")
    heads = found.heads_besides("dummy")
    return Policy(classes, default="dummy", heads=heads, warmup=warmup, made_for=found.shape)
