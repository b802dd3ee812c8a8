"""The queries of a pass that are kept until its chunk is history: what the graph writes them to."""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import PassFacts
from .site import Site


class KeptQueries:
    """Inputs of an observed graph.

    Attributes:
        rows: int64 [R], the rows of the query that the running pass keeps; none where nothing is to be kept.
        kept: [B, R, H, D] for each of `layers` layers, where it keeps them; [B, 1, H, D] for their mean.
    """

    def __init__(self, layers: int) -> None:
        self.rows = torch.empty(0, dtype=torch.int64)
        self.kept: list[Tensor] = []
        self._layers = layers
        self._wanted = self.rows

    def want(self, rows: Tensor, facts: PassFacts, site: Site, *, mean: bool = False) -> None:
        """Makes room for these rows, unless it is there: a pass that is run again writes to the same."""
        shape = (facts.batch, min(len(rows), 1) if mean else len(rows), site.heads, site.head_dim)
        if self.kept and self.kept[0].shape == shape and torch.equal(rows, self._wanted):
            return
        self._wanted = rows
        with torch.inference_mode(False):
            self.rows = rows.to(facts.device)
            self.kept = [torch.empty(shape, dtype=site.dtype, device=facts.device) for _ in range(self._layers)]
