"""Rows of heads whose regions look alike, by the frame or the part that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...policy import Part
from ...policy.parts import Content


class Rows:
    """Keys and values of C heads, whose frames and parts lie at the same places of their regions.

    Args:
        k, v: the pools, [P, T, D] and [P, T, Dv]. base: [C], the first page of each region.
        page: frame -> page of the region. places: what a part is made of -> where it lies, counted in such parts from
            the start of the region.
    """

    def __init__(
        self, k: Tensor, v: Tensor, base: Tensor, page: Mapping[int, int], places: Mapping[Content, int]
    ) -> None:
        self.k, self.v, self.base = k, v, base
        self.page, self.places = page, places

    @property
    def tokens(self) -> int:
        """Rows of a frame."""
        return self.k.shape[1]

    def where(self, part: Part) -> int | None:
        """Where the rows of a segment lie, counted in segments from the start of the region: in its frame or in a
        store; None if they are not held."""
        page = self.page.get(part.at) if part.frames == (part.at,) else None
        return self.places.get(part.content) if page is None else page * part.of + part.index

    def take(self, pool: Tensor, places: Sequence[int], of: int) -> Tensor:
        """[C, n, T / of, D]: n pieces of every region, of which a page has `of`."""
        pieces = pool.view(-1, pool.shape[1] // of, pool.shape[2])
        return pieces.index_select(0, self._index(places, of)).unflatten(0, (len(self.base), len(places)))

    def put(self, pool: Tensor, places: Sequence[int], of: int, rows: Tensor) -> None:
        """Writes rows [C, n, T / of, D] into n pieces of every region."""
        pieces = pool.view(-1, pool.shape[1] // of, pool.shape[2])
        pieces.index_copy_(0, self._index(places, of), rows.flatten(0, 1).to(pool.dtype))

    def _index(self, places: Sequence[int], of: int) -> Tensor:
        offsets = torch.tensor(places, dtype=torch.int64).to(self.base.device, non_blocking=True)
        return (self.base[:, None] * of + offsets).flatten()
