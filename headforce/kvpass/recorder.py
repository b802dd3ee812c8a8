"""What a probed model attends to, pass by pass. The numbers stay on the device until somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lowering.state.sampling import sampled_rows
from ..policy import Chunk
from .layers import PassFacts
from .site import Site


@dataclass(eq=False)
class PassRecord:
    """One pass of one batch of videos.

    Attributes:
        chunk: what was denoised. step: how many passes of this chunk came before. keys: the frames that attention read,
            the chunk's own last. statistics: by layer, [3, B, H, G, F], see `lowering.measuring.measure`.
    """

    chunk: Chunk
    step: int
    keys: tuple[int, ...]
    statistics: dict[int, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class VideoRecord:
    """The passes of one batch of videos, in order. `batch`: its rows, each a video."""

    batch: int
    passes: list[PassRecord] = field(default_factory=list)

    def enter(self, layer: int, chunk: Chunk, keys: tuple[int, ...]) -> PassRecord:
        """The pass in which a layer runs now: the running one, or a new one if the layer has been in that."""
        last = self.passes[-1] if self.passes else None
        if last is None or last.chunk != chunk or layer in last.statistics:
            step = last.step + 1 if last is not None and last.chunk == chunk else 0
            self.passes.append(PassRecord(chunk, step, keys))
        return self.passes[-1]


@dataclass(frozen=True)
class ModelFacts:
    """What a profile says of the model: sizes, and bytes of K and V of one frame of one head."""

    layers: int
    heads: int
    tokens_per_frame: int
    frame_bytes: int


class Recorder:
    """Gives every pass the buffers that its statistics are written to, and keeps them.

    Args:
        queries: the share of the query rows that is measured, of every frame alike. seed: of their choice.
        by_query: whether every query frame has statistics of its own, instead of the chunk as a whole.

    Attributes:
        videos: what was recorded, oldest first. model: None before the first pass.
        on_pass: called when a pass begins, if set.
    """

    def __init__(self, queries: float = 0.25, seed: int = 0, by_query: bool = False) -> None:
        self.queries = queries
        self.seed = seed
        self.by_query = by_query
        self.videos: list[VideoRecord] = []
        self.model: ModelFacts | None = None
        self.on_pass: Callable[[], object] | None = None
        self._rows: dict[tuple[int, int, int, torch.device], Tensor] = {}

    def begin(self, batch: int) -> VideoRecord:
        """A new batch of videos begins."""
        self.videos.append(VideoRecord(batch))
        return self.videos[-1]

    def want(self, record: PassRecord, layer: int, layers: int, facts: PassFacts, site: Site) -> Tensor:
        """Room for the statistics of a layer in a pass; they are zero until they are written."""
        if not record.statistics and self.on_pass is not None:
            self.on_pass()
        width = (site.head_dim + site.value_dim) * site.cache.dtype.itemsize
        self.model = ModelFacts(layers, site.heads, facts.rows, facts.rows * width)
        groups = facts.frames if self.by_query else 1
        shape = (3, facts.batch, site.heads, groups, len(record.keys))
        with torch.inference_mode(False):
            record.statistics[layer] = torch.zeros(shape, dtype=torch.float32, device=facts.device)
        return record.statistics[layer]

    def rows(self, facts: PassFacts) -> Tensor:
        """The query rows that are measured: int64, of every frame of the chunk as many."""
        key = facts.frames, facts.rows, facts.lead, facts.device
        if key not in self._rows:
            with torch.inference_mode(False):
                rows = sampled_rows(self.queries, self.seed, facts.frames * facts.rows, facts.frames)
                self._rows[key] = (rows + facts.written.start).to(facts.device)
        return self._rows[key]

    def clear(self) -> None:
        """Forgets all videos; of one that is still being made nothing more is recorded."""
        self.videos = []
