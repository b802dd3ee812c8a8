"""Page pools: the K and V of every layer and head, and the tables that say what is where.

One pool holds all layers. Its size is the capacity of the policy plus the current chunk, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import HeadforceError
from ..policy import FrameSet
from .bounds import check_bounds, check_pages
from .plan import Cell, ChunkPlan
from .schedule import part_tiles
from .stream import Stream
from .tables import Regions, build_tables

AT_ONCE = 256
"""Pages that are copied at a time when pools are laid out anew."""


@dataclass(frozen=True)
class PageShape:
    """What a page is: `rows` rows (tokens of a frame) of `head_dim` keys and `value_dim` values, of one K/V head that
    `share` query heads read."""

    batch: int
    rows: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device
    share: int = 1


def processors_of(device: torch.device) -> int:
    """Processors among which a launch is shared out; 0 where kernels do not run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


class PagePool:
    """Pools and tables of one stream.

    `k` is [P, T, D] and `v` [P, T, Dv]; `reads`, `runs` and `pages` are lists with one tensor for each layer. Tensors
    keep their address for as long as `stream.layout` stays the same and chunks have the same size.
    """

    def __init__(self, stream: Stream, shape: PageShape, *, canonical: bool = False) -> None:
        if shape.batch != stream.batch:
            raise HeadforceError(
                "HF-SHAPE", found=f"pages for {shape.batch} videos", needed=f"{stream.batch}, as the stream has"
            )
        self.stream = stream
        self.shape = shape
        self.canonical = canonical
        self.regions: Regions | None = None
        self.k = self._empty(0, shape.head_dim)
        self.v = self._empty(0, shape.value_dim)
        self.reads: list[Tensor] = []
        self.runs: list[Tensor] = []
        self.pages: list[Tensor] = []
        self._layout = -1
        self._plan: ChunkPlan | None = None
        self._tables: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of K and V, history and current chunk together."""
        return self.k.nbytes + self.v.nbytes

    def frames_at(self, cell: Cell, row: int, rows: int) -> str:
        """In words, what lies in rows [row, row + rows) of the pool, which are in the region of one head."""
        assert self.regions is not None
        layer, batch, head = cell
        frame = {page: f for f, page in self.stream.lane(layer, head, batch).slots.slot.items()}
        first = int(self.regions.base[layer, batch, head])
        pages = range(row // self.shape.rows - first, -(-(row + rows) // self.shape.rows) - first)
        found = FrameSet.of(frame[page] for page in pages if page in frame)
        words = [f"frames {found}"] if found else []
        return " and ".join(words + ["parts of frames"] * any(page not in frame for page in pages))

    def update(self) -> None:
        """Follows the stream to its current chunk: grows the pools if regions grew, and uploads the tables.

        Does nothing if it was called for this chunk before.
        """
        if self._plan is self.stream.plan and self._layout == self.stream.layout:
            return
        if self._layout != self.stream.layout:
            self._lay_out()
        assert self.regions is not None
        shape, processors = self.shape, processors_of(self.shape.device)
        tables = build_tables(self.stream, self.regions, shape.rows, self.canonical, processors, shape.share)
        _, batch, heads = self.regions.base.shape
        heads *= shape.share
        assert self.stream.chunk is not None
        tokens = (self.stream.chunk.lead + tables.pages.shape[-1]) * shape.rows
        room = part_tiles(tables.reads.shape[1], batch * heads, tokens, processors)
        sizes = {"batch": batch, "heads": heads, "tokens": tokens, "rows": self.regions.pages * shape.rows}
        check_bounds(tables.reads, tables.runs, **sizes, part_tiles=room)
        check_pages(tables.pages, self.regions.pages)
        arrays = [torch.from_numpy(array) for array in (tables.reads, tables.runs, tables.pages)]
        if shape.device.type == "cuda":
            arrays = [array.pin_memory() for array in arrays]  # from other memory the host would wait for the copy
        if [t.shape for t in self._tables] != [a.shape for a in arrays]:
            with torch.inference_mode(False):
                self._tables = tuple(torch.empty_like(a, device=self.shape.device) for a in arrays)
            self.reads, self.runs, self.pages = (list(t.unbind(0)) for t in self._tables)
        for table, array in zip(self._tables, arrays, strict=True):
            table.copy_(array, non_blocking=True)
        self._plan = self.stream.plan

    def _empty(self, pages: int, width: int) -> Tensor:
        # A pool made by a call in inference mode is written by later calls that may not be.
        with torch.inference_mode(False):
            return torch.empty((pages, self.shape.rows, width), dtype=self.shape.dtype, device=self.shape.device)

    def _lay_out(self) -> None:
        """New pools for other regions; what is held moves along. Happens when a stream changes its rhythm, if ever, and
        when its warm-up is over."""
        old, regions = self.regions, Regions.of(self.stream)
        k, v = self._empty(regions.pages, self.shape.head_dim), self._empty(regions.pages, self.shape.value_dim)
        if old is not None:
            source, target = (torch.from_numpy(ids).to(self.shape.device) for ids in self._moves(old, regions))
            for pages, others in ((self.k, k), (self.v, v)):
                for some, there in zip(source.split(AT_ONCE), target.split(AT_ONCE), strict=True):
                    others.index_copy_(0, there, pages.index_select(0, some))
        # All at once: if memory did not suffice, everything is as it was, and can be tried again.
        self.k, self.v, self.regions = k, v, regions
        self.stream.relaid = {}
        self._layout = self.stream.layout

    def _moves(self, old: Regions, new: Regions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The pages that are kept: where each of them lies, and where it goes."""
        source, target = [], []
        for i in range(len(self.stream.lanes)):
            members = self.stream.lane_of == i
            size = min(int(old.size[members][0]), int(new.size[members][0]))
            pages = [(page, page) for page in range(size)]
            moves = np.array(self.stream.relaid.get(i, pages), dtype=np.int64).reshape(-1, 2)
            source.append((old.base[members][:, None] + moves[:, 0]).flatten())
            target.append((new.base[members][:, None] + moves[:, 1]).flatten())
        return np.concatenate(source), np.concatenate(target)
