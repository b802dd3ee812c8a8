"""The query rows that are measured: a sample that depends on nothing but its seed."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_rows(share: float, seed: int, tokens: int, groups: int = 1) -> Tensor:
    """A share of `tokens` rows: int64, rising, at least one of each of `groups` groups of adjacent rows, of all alike.

    The global random state is neither read nor changed.
    """
    generator = torch.Generator().manual_seed(seed)
    length = tokens // groups
    count = min(length, max(1, round(share * length)))
    picked = [torch.randperm(length, generator=generator)[:count].sort().values for _ in range(groups)]
    return torch.cat([rows + group * length for group, rows in enumerate(picked)])
