"""`qk`: how much the queries of the last pass ask for a segment."""

from __future__ import annotations

import torch
from torch import Tensor

from ..score import Segments, score


@score("qk", best="highest", queries=True)
def qk(segments: Segments) -> Tensor:
    """The product of a token's key and the mean query of the last pass; the mean over tokens and heads of a group.

    Keys and queries are taken as they were rotated at their own frames; no softmax (Deep Forcing, arXiv 2512.05081).
    """
    assert segments.queries is not None
    keys = segments.keys.float()
    return torch.einsum("ghmrd,ghd->gm", keys, segments.queries.float()) / (
        keys.shape[1] * keys.shape[3] * keys.shape[4] ** 0.5
    )
