"""Target `sdpa`: heads with equal plans in one `scaled_dot_product_attention` call.

Heads of one rule lie in the pool at a constant distance, so a run of rows is a strided view over all of them, and a
plan of a single run needs no copy at all. Several runs are gathered; a run with a shift is turned on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """The first pool row of every read."""


@target("sdpa")
def sdpa(
    query: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
) -> Tensor:
    """See `kernels.reference.ragged_attention`; softmax in the precision of the backend that SDPA picks."""
    keys, values = k_pool.flatten(0, 1), v_pool.flatten(0, 1)
    out = query.new_zeros((*query.shape[:3], v_pool.shape[-1]))
    for group in _groups(reads.tolist(), runs.tolist()):
        part = slice(group.query_row, group.query_row + group.query_rows)
        for batch, heads, first_row, step in _blocks(group):
            k = _gather(keys, group.runs, first_row, len(heads), step, theta, first_pair, style).to(query.dtype)
            v = _gather(values, group.runs, first_row, len(heads), step).to(query.dtype)
            q = _columns(query[batch, part], heads).movedim(1, 0)
            result = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0].movedim(0, 1)
            if _adjacent(heads):
                out[batch, part, heads[0] : heads[-1] + 1] = result
            else:
                out[batch, part, heads] = result
    return out


def _groups(reads: list[list[int]], runs: list[list[int]]) -> Iterator[_Group]:
    groups: dict[tuple[object, ...], _Group] = {}
    for batch, head, query_row, query_rows, first, count in reads:
        if not query_rows or not count:
            continue
        base = runs[first][0]
        shape = tuple((row - base, rows, shift) for row, rows, shift in runs[first : first + count])
        group = groups.setdefault((query_row, query_rows, shape), _Group(query_row, query_rows, shape, [], []))
        group.cells.append((batch, head))
        group.rows.append(base)
    yield from groups.values()


def _blocks(group: _Group) -> Iterator[tuple[int, list[int], int, int]]:
    """(batch row, heads, first pool row, rows from one head to the next) of reads at a constant distance."""
    start = 0
    for i in range(1, len(group.cells) + 1):
        step = group.rows[start + 1] - group.rows[start] if i > start + 1 else 0
        ends = i == len(group.cells) or group.cells[i][0] != group.cells[start][0]
        if ends or (i > start + 1 and group.rows[i] - group.rows[i - 1] != step) or group.rows[i] < group.rows[i - 1]:
            batch = group.cells[start][0]
            yield batch, [head for _, head in group.cells[start:i]], group.rows[start], step
            start = i


def _gather(
    pool: Tensor,
    runs: tuple[Run, ...],
    first_row: int,
    heads: int,
    step: int,
    theta: Tensor | None = None,
    first_pair: int = 0,
    style: str = "",
) -> Tensor:
    """The rows of `runs` for `heads` heads, [heads, rows, D]: a view if there is one run and nothing to turn."""
    width = pool.shape[1]
    parts = []
    for row, rows, shift in runs:
        part = pool.as_strided(
            (heads, rows, width), (step * width, width, 1), pool.storage_offset() + (first_row + row) * width
        )
        if shift and theta is not None:
            part = turn(part, shift * theta.to(torch.float64), first_pair, style)
        parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _adjacent(heads: list[int]) -> bool:
    return heads[-1] - heads[0] == len(heads) - 1


def _columns(query: Tensor, heads: list[int]) -> Tensor:
    return query[:, heads[0] : heads[-1] + 1] if _adjacent(heads) else query[:, heads]
