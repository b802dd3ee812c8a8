"""`segment_cosine`: how much a segment resembles the same segment of the next frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..score import Segments, score


@score("segment_cosine", best="lowest", following=True)
def segment_cosine(segments: Segments) -> Tensor:
    """The mean over tokens of the cosine of a token's key and the key at the same place one frame later.

    All heads of a group count as one long key. Keys are compared as they are stored, rotated at their own frames:
    that is what Forcing-KV's code does (commit 50ac1f45).
    """
    assert segments.following is not None
    # [G, H, m, R, D] -> [G, m, R, H * D]
    now, later = (keys.float().movedim(1, -2).flatten(-2) for keys in (segments.keys, segments.following))
    return F.cosine_similarity(now, later, dim=-1).mean(-1)
