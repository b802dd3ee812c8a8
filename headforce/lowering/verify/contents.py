"""What pages hold against what was written: K and V of a frame are those of the last pass over it, for ever after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import HeadforceError
from ..pool import PagePool

Cell = tuple[int, int, int]
"""(layer, batch row, head)."""


class Contents:
    """Fingerprints of all frames of one stream, taken from what was to be written."""

    def __init__(self) -> None:
        self._of: dict[Cell, dict[int, tuple[int, int]]] = {}

    def wrote(self, layer: int, frames: Sequence[int], key: Tensor, value: Tensor, pool: PagePool) -> None:
        """A chunk [B, S, H, D] of a layer was written: frame by frame it counts from now on."""
        rows = pool.shape.rows
        marks = [_marks(x.to(pool.shape.dtype).unflatten(1, (-1, rows)).movedim(3, 1)) for x in (key, value)]
        for b in range(key.shape[0]):
            for head in range(key.shape[2]):
                of = self._of.setdefault((layer, b, head), {})
                of.update({f: (marks[0][b][head][i], marks[1][b][head][i]) for i, f in enumerate(frames)})

    def unseen(self, frames: Sequence[int]) -> None:
        """A pass over these frames runs that nobody looks at: what their pages hold is not known from now on."""
        for of in self._of.values():
            for frame in frames:
                of.pop(frame, None)

    def check(self, layer: int, pool: PagePool) -> None:
        """HF-VERIFY-SITE if a page of a layer does not hold what was last written for its frame."""
        assert pool.regions is not None
        _, batch, heads = pool.regions.base.shape
        for b in range(batch):
            for head in range(heads):
                known = self._of.get((layer, b, head), {})
                slot = pool.stream.lane(layer, head, b).slots.slot
                frames = [frame for frame in slot if frame in known]
                base = int(pool.regions.base[layer, b, head])
                pages = torch.tensor([base + slot[frame] for frame in frames], device=pool.k.device)
                found = [_marks(x.index_select(0, pages)) for x in (pool.k, pool.v)]
                _compare(dict(zip(frames, zip(*found, strict=True), strict=True)), known, (layer, b, head))


def _compare(found: Mapping[int, tuple[int, int]], known: Mapping[int, tuple[int, int]], cell: Cell) -> None:
    wrong = [frame for frame, marks in found.items() if marks != known[frame]]
    if wrong:
        which = " and ".join(name for i, name in enumerate("KV") if found[wrong[0]][i] != known[wrong[0]][i])
        layer, batch, head = cell
        raise HeadforceError(
            "HF-VERIFY-SITE",
            site=f"layer {layer}, batch row {batch}, head {head}",
            found=f"a page whose {which} is not what the last pass over frame {wrong[0]} wrote",
            needed="pages that nobody else writes, and every pass written",
        )


def _marks(pages: Tensor) -> list:
    """A number for each page [..., T, D] that changes with any bit of it: nested lists of ints."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[pages.dtype.itemsize]
    flat = pages.contiguous().view(bits).flatten(-2).to(torch.int64)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(1 << 62, (flat.shape[-1],), generator=generator) | 1
    marks: list = (flat * weights.to(flat.device)).sum(-1).tolist()  # modulo 2**64
    return marks
