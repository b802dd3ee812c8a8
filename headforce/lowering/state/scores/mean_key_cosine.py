"""`mean_key_cosine`: how much a segment resembles the newest frame there."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..score import Segments, score


@score("mean_key_cosine", best="highest", raw=True, newest=True)
def mean_key_cosine(segments: Segments) -> Tensor:
    """The cosine of a segment's mean key and that of the same segment of the newest committed frame, before RoPE.

    All heads of a group count as one long key.
    """
    assert segments.newest is not None
    # [G, H, m, R, D] -> [G, m, H * D]
    then, now = (keys.float().mean(-2).movedim(1, -2).flatten(-2) for keys in (segments.keys, segments.newest))
    return F.cosine_similarity(then, now, dim=-1)
