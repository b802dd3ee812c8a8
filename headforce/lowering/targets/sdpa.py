"""Target `sdpa`: heads with equal plans in one `scaled_dot_product_attention` call.

Heads of one rule lie at a constant distance, in the pool and in the model's own cache, so a run of rows is a strided
view over all of them, and a plan of a single run needs no copy at all. Several runs are gathered; a run with a shift is
turned on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.reference import READ_FIELDS, RUN_FIELDS
from ...kernels.rotation import turn
from .registry import target

Run = tuple[int, int, int]


@dataclass
class _Group:
    """Reads of the same query rows with the same runs, but for where their regions begin."""

    query_row: int
    query_rows: int
    runs: tuple[Run, ...]
    cells: list[tuple[int, int]]
    """(batch, head) of every read."""
    rows: list[int]
    """The first pool row of every read; 0 in an operand."""


@dataclass(frozen=True)
class _Block:
    """Heads of one batch row; the rows of each begin `step` pool rows behind those of the one before."""

    batch: int
    heads: list[int]
    first_row: int
    step: int


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
    paged = key.dim() == 3
    for group, blocks in _laid_out(_bytes(reads), _bytes(runs), paged):
        part = slice(group.query_row, group.query_row + group.query_rows)
        for block in blocks:
            of_block = _page_rows if paged else partial(_operand_rows, query.shape[2])
            turned, plain = [], []
            for row, rows, shift in group.runs:
                k = of_block(key, block, row, rows)
                turned.append(turn(k, shift * theta.to(torch.float64), first_pair, style) if shift else k)
                plain.append(of_block(value, block, row, rows))
            k, v = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in (turned, plain))
            q = _columns(query[block.batch, part], 1, block.heads).movedim(1, 0)
            result = F.scaled_dot_product_attention(
                q[None], k[None].to(query.dtype), v[None].to(query.dtype), scale=scale
            )[0].movedim(0, 1)
            if _adjacent(block.heads):
                out[block.batch, part, block.heads[0] : block.heads[-1] + 1] = result
            else:
                out[block.batch, part, block.heads] = result
    return out


def _bytes(table: Tensor) -> bytes:
    content: bytes = table.cpu().numpy().tobytes()
    return content


@lru_cache(maxsize=256)  # all passes of a chunk have the same tables
def _laid_out(reads: bytes, runs: bytes, paged: bool) -> tuple[tuple[_Group, tuple[_Block, ...]], ...]:
    rows_of_reads, rows_of_runs = (
        np.frombuffer(table, dtype=np.int32).reshape(-1, len(fields)).tolist()
        for table, fields in ((reads, READ_FIELDS), (runs, RUN_FIELDS))
    )
    return tuple((group, tuple(_blocks(group))) for group in _groups(rows_of_reads, rows_of_runs, paged))


def _groups(reads: list[list[int]], runs: list[list[int]], paged: bool) -> Iterator[_Group]:
    """In pages, every head has its own region, and runs count from where it begins; in an operand, none has."""
    groups: dict[tuple[object, ...], _Group] = {}
    for batch, head, query_row, query_rows, first, count, *_ in reads:
        if not query_rows or not count:
            continue
        base = runs[first][0] if paged else 0
        shape = tuple((row - base, rows, shift) for row, rows, shift in runs[first : first + count])
        group = groups.setdefault((query_row, query_rows, shape), _Group(query_row, query_rows, shape, [], []))
        group.cells.append((batch, head))
        group.rows.append(base)
    yield from groups.values()


def _blocks(group: _Group) -> Iterator[_Block]:
    start = 0
    for i in range(1, len(group.cells) + 1):
        step = group.rows[start + 1] - group.rows[start] if i > start + 1 else 0
        ends = i == len(group.cells) or group.cells[i][0] != group.cells[start][0]
        if ends or (i > start + 1 and group.rows[i] - group.rows[i - 1] != step) or group.rows[i] < group.rows[i - 1]:
            yield _Block(group.cells[start][0], [head for _, head in group.cells[start:i]], group.rows[start], step)
            start = i


def _page_rows(pool: Tensor, block: _Block, row: int, rows: int) -> Tensor:
    """Rows of every head of the block, [heads, rows, D], as a view of the pages."""
    width = pool.shape[2]
    return pool.as_strided(
        (len(block.heads), rows, width),
        (block.step * width, width, 1),
        pool.storage_offset() + (block.first_row + row) * width,
    )


def _operand_rows(heads: int, operand: Tensor, block: _Block, row: int, rows: int) -> Tensor:
    """The same of an operand [B, R, Hk, D]; a view for adjacent heads, each with K and V of its own."""
    share = heads // operand.shape[2]
    return _columns(operand[block.batch, row : row + rows], 1, [head // share for head in block.heads]).movedim(1, 0)


def _adjacent(heads: list[int]) -> bool:
    return all(b - a == 1 for a, b in pairwise(heads))


def _columns(x: Tensor, dim: int, heads: list[int]) -> Tensor:
    if _adjacent(heads):
        return x.narrow(dim, heads[0], len(heads))
    return x.index_select(dim, torch.tensor(heads, device=x.device))
