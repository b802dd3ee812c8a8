"""Dummy Forcing: heads that lose least without a past, assigned jointly (arXiv 2601.20499)."""

from __future__ import annotations

import numpy as np

from ...errors import HeadforceError
from ...policy import Classify
from ...presets import Labels
from ..measured import Pass
from .registry import Found, method


@method("dummy", ("sink", "neighbor", "dummy"), preset="dummy_forcing", form=Labels.to_dummy_forcing)
def dummy(passed: Pass, dummies: int | float = 0.5, first_frames: int = 1) -> Found:
    """Exactly `dummies` heads (a number, or a share) need no past; the others are what they attend to more.

    Args:
        dummies: a whole number of heads of the model, or a share of them from 0.0 to 1.0.
        first_frames: how many of the oldest frames make a sink; the frames between them and the chunk make a neighbor.

    The same assignment as that of a policy with `classify`, see `policy.classify`. The method measures an early chunk,
    in which a head reads few frames; `chunk` of `classify_heads` says which.
    """
    if len(passed.past) <= first_frames:
        raise HeadforceError(
            "HF-PROFILE-DATA",
            site=f"chunk {passed.chunk.index}",
            found=f"{len(passed.past)} past frames",
            needed=f"more than {first_frames}, so that some lie between the first and the chunk",
        )
    rule = Classify(max(1, passed.chunk.index), dummies, first_frames=first_frames)
    first, middle = passed.on(passed.past[:first_frames]), passed.on(passed.past[first_frames:])
    names = rule.assign(first.tolist(), middle.tolist())
    return Found.of(names, np.maximum(first / (first.sum() or 1), middle / (middle.sum() or 1)))
