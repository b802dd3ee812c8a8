"""The heads of one stream that are classified while it runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.pool import PagePool
from ..lowering.state.classify import masses, sampled_rows
from ..lowering.state.turning import Turning
from ..lowering.stream import Stream
from ..policy import Policy, Rule
from .layers import PassFacts
from .site import Site


class HeadClasses:
    """Keeps a sample of the queries of one chunk, and says from it which heads are what.

    Args:
        policy: with `classify`. layers: of the model. of_model: what `Policy.bind` wants to know. native: the rule of
            the unmodified model.

    Attributes:
        rows: int64 [R], the rows of the query that the running pass keeps; none outside the measured chunk.
        kept: [B, R, H, D] for each layer, where it keeps them.
        classes: the class of every head, [layer][head], once that is known.
    """

    def __init__(self, policy: Policy, layers: int, of_model: Mapping[str, int], native: Rule) -> None:
        assert policy.classify is not None
        self.policy = policy
        self.classify = policy.classify
        self.rows = torch.empty(0, dtype=torch.int64)
        self.kept: list[Tensor] = []
        self.classes: list[list[str]] | None = None
        self._layers = layers
        self._of_model = of_model
        self._native = native
        self._scale = 1.0

    def before(self, facts: PassFacts, pool: PagePool, turning: Turning) -> None:
        """A pass is about to begin. If it begins behind the measured chunk, the heads get their classes first.

        Raises HF-CLASSIFY if the stream has gone by the chunk that was to be measured.
        """
        stream = pool.stream
        chunk = stream.chunk
        if self.classes is not None or chunk is None or not (facts.start >= chunk.stop or stream.closed):
            return
        if chunk.index == self.classify.chunk:
            first, middle = masses(pool, turning, self.kept, self._scale, self.classify)
            self.classes = self.classify.assign(first, middle)
            stream.resolve(self.policy.classified(self.classes).bind(**self._of_model, native=self._native))
        elif chunk.index > self.classify.chunk:
            raise HeadforceError(
                "HF-CLASSIFY",
                found=f"a stream at chunk {chunk.index} whose heads have no classes",
                needed=f"a pass over chunk {self.classify.chunk} before it, to be measured",
            )

    def begun(self, facts: PassFacts, site: Site, stream: Stream) -> None:
        """A pass has begun: makes room for its queries if they are to be kept."""
        assert stream.chunk is not None
        measured = self.classes is None and stream.chunk.index == self.classify.chunk
        rows = sampled_rows(self.classify, facts.frames * facts.rows if measured else 0)
        shape = (facts.batch, len(rows), site.heads, site.head_dim)
        self._scale = site.scale
        if self.kept and self.kept[0].shape == shape:
            return
        with torch.inference_mode(False):
            self.rows = rows.to(facts.device)
            self.kept = [torch.empty(shape, dtype=site.dtype, device=facts.device) for _ in range(self._layers)]
