"""Target `sdpa`: heads that read alike in one `scaled_dot_product_attention` call for each reading.

A reading of a single run is read where it lies. Others are gathered, and their keys turned on the way; beside the
result that takes one buffer for the keys and the values of the heads of one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.rotation import copy_turned, factors
from ..gathering import Block, Gather, Run, reads_of
from .registry import target


@target("sdpa")
def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
) -> Tensor:
    """See `kernels.reference.ragged_attention`; softmax in the precision of the backend that SDPA picks."""
    out = query.new_zeros((*query.shape[:3], value.shape[-1]))
    layout = reads_of(_bytes(reads), _bytes(runs), key.dim() == 3)
    turns = dict(zip(layout.shifts, factors(theta, layout.shifts), strict=True)) if layout.shifts else {}
    rotation = (first_pair, style)
    for group in layout.groups:
        key_rows, value_rows = group.buffer_rows
        for block in group.blocks:
            keys = _Rows(key, block, key_rows, query, turns, rotation)
            values = _Rows(value, block, value_rows, query, turns, rotation)
            stretches = _stretches(block.heads)
            for reading in group.readings:
                part = slice(reading.query_row, reading.query_row + reading.query_rows)
                q = _columns(query[block.batch, part], 1, block.heads).movedim(1, 0)
                k, v = keys.of(reading.keys), values.of(reading.values)
                result = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0].movedim(0, 1)
                for first, stop in stretches:
                    heads = slice(block.heads[first], block.heads[first] + stop - first)
                    out[block.batch, part, heads] = result[:, first:stop]
    return out


def _bytes(table: Tensor) -> bytes:
    content: bytes = table.cpu().numpy().tobytes()
    return content


class _Rows:
    """Keys or values of the heads of a block, in the dtype of the query: where they lie, or in a buffer."""

    def __init__(
        self,
        source: Tensor,
        block: Block,
        most: int,
        query: Tensor,
        turns: Mapping[int, Tensor],
        rotation: tuple[int, str],
    ) -> None:
        self._source, self._block, self._query = source, block, query
        self._turns, self._rotation = turns, rotation
        self._buffer = query.new_empty((len(block.heads), most, source.shape[-1]))

    def of(self, gather: Gather) -> Tensor:
        """[heads, rows, D]; gathers of a group have to be asked for in their order."""
        if gather.run is not None:
            return self._view(gather.run).to(self._query.dtype)
        for at, run in gather.copies:
            there = self._buffer[:, at : at + run.rows]
            if run.shift:
                copy_turned(there, self._view(run), self._turns[run.shift], *self._rotation)
            else:
                there.copy_(self._view(run))
        return self._buffer[:, : gather.rows]

    def _view(self, run: Run) -> Tensor:
        """[heads, rows, D]; in pages always a view, in an operand for adjacent heads with K and V of their own."""
        source, block = self._source, self._block
        if source.dim() == 3:
            width = source.shape[2]
            return source.as_strided(
                (len(block.heads), run.rows, width),
                (block.step * width, width, 1),
                source.storage_offset() + (block.first_row + run.row) * width,
            )
        share = self._query.shape[2] // source.shape[2]
        rows = source[block.batch, run.row : run.row + run.rows]
        return _columns(rows, 1, tuple(head // share for head in block.heads)).movedim(1, 0)


@lru_cache(maxsize=1024)
def _stretches(heads: tuple[int, ...]) -> list[tuple[int, int]]:
    """[first, stop) of the places at which adjacent heads follow each other."""
    ends = [i for i, (a, b) in enumerate(pairwise(heads), start=1) if b - a != 1]
    return list(pairwise([0, *ends, len(heads)]))


def _columns(x: Tensor, dim: int, heads: tuple[int, ...]) -> Tensor:
    if len(_stretches(heads)) == 1:
        return x.narrow(dim, heads[0], len(heads))
    return x.index_select(dim, torch.tensor(heads, device=x.device))
