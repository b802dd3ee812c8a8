"""The caches of a stream whose attention is measured, and otherwise left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .capture import LayerCache
from .layers import PROBED, Layer, PassFacts, RopeTables
from .recorder import Recorder, VideoRecord
from .site import Site
from .view_caches import ViewCaches
from .view_plans import ViewPlans

if TYPE_CHECKING:
    from .session import Session


class ProbedCaches(ViewCaches):
    """View mode that reads what the model itself reads: which frames those are is all that is taken of it.

    Args:
        recorder: takes the statistics.
        keys, session, caches: as for `ViewCaches`.
    """

    variant = PROBED

    def __init__(
        self, recorder: Recorder, keys: Sequence[Tensor], session: Session, caches: Sequence[LayerCache]
    ) -> None:
        super().__init__(ViewPlans.of(session.policy, len(caches)), keys, session, caches)
        self._recorder = recorder
        self._video: VideoRecord | None = None
        self._added: list[Tensor] = [torch.empty(0)] * len(caches)
        self._rows = torch.empty(0, dtype=torch.int64)

    def enter(self, layer: Layer, facts: PassFacts, site: Site, rope: RopeTables) -> None:
        facts = self.counted(facts)
        evicted = layer.rows_evicted(facts)
        chunk = self._chunk(facts)
        keys = (*self._held(layer, facts, evicted), *chunk.queries)
        begins = chunk.start == 0 and not self.again
        if self._video is None or (begins and self._video.passes[-1].chunk.start > 0):
            self._video = self._recorder.begin(facts.batch)
        record = self._video.enter(layer.number, chunk, keys)
        self._added[layer.number] = self._recorder.want(record, layer.number, len(self.layers), facts, site)
        self._rows = self._recorder.rows(facts)
        layer.ran(facts, evicted)

    def inputs(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The rows that are measured, then room for the statistics of each layer."""
        return [self._rows, *(self._added[layer.number] for layer in layers)]

    def check_answers(self) -> None:
        """What the policy would do is of no interest."""

    def see_reset(self) -> None:
        super().see_reset()
        if self._clock.chunk is None:
            self._video = None
