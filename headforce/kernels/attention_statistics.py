"""Where the attention of every head goes, summed over groups of its key rows: probability, scores and entropy.

The same softmax as `reference.ragged_attention`, of which only sums are wanted, for a sample of the query rows. It is
computed over blocks of keys, so that no matrix of all rows by all keys exists at any time, and it stays on the device:
the host learns nothing of queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import head_rows
from .rotation import turn

Kind = tuple[int, int, tuple[tuple[int, int, int], ...]]
"""What equal reads have in common: query_row, query_rows, and of every run its rows, shift and column."""

Member = tuple[int, int, tuple[int, ...]]
"""What they need not have in common: batch, head, and of every run its first row."""


class Statistics(NamedTuple):
    """Means over the sampled query rows of a group, float32 [B, H, groups, columns] each.

    Attributes:
        mass: the probability on the rows of a column.
        logit: the score before softmax, averaged over the rows of a column; zero for a column without rows.
        entropy: what the rows of a column add to the entropy, -sum(p log p) in nats.
    """

    mass: Tensor
    logit: Tensor
    entropy: Tensor


@torch.no_grad()
def attention_statistics(
    query: Tensor,
    key: Tensor,
    reads: Tensor,
    runs: Tensor,
    columns: Tensor,
    count: int,
    sampled: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
    block: int = 4096,
    groups: int = 1,
) -> Statistics:
    """What falls on each of `count` columns of the rows that a head reads.

    Args:
        query: [B, S, H, D], rotated at the query's own frame.
        key: [P, T, D] pages of T rows, or [B, R, Hk, D], as for `reference.ragged_attention`.
        reads: int32 [N, 8], see `reference.READ_FIELDS`; no query row of a head is in two reads.
        runs: int32 [M, 3], see `reference.RUN_FIELDS`.
        columns: int32 [M], for every run the column that its rows count to, or -1 for none; rows of no column are
            still part of the softmax.
        count: how many columns there are.
        sampled: int64 [R] in 0 .. S-1, the query rows that are measured, of every head the same; one that is named
            twice counts twice.
        theta, first_pair, style, scale: as for `reference.ragged_attention`.
        block: at most so many key rows at a time.
        groups: the sampled rows are so many groups of equal size, one after the other.

    A sampled row that no read of the head covers counts as zero. Computed in float32, or in float64 for a float64
    query.

    `reads`, `runs` and `columns` are read on the host and should be there. Everything else is on the device of the
    query and the host does not wait for it: a sampled row outside a read is masked and not left out. Heads whose
    reads differ in nothing but where their rows are go together, with at most `block` * R scores for each of them at
    any time. Nothing is remembered for a gradient.
    """
    compute, device = torch.promote_types(query.dtype, torch.float32), query.device
    heads, room = query.shape[2], max(len(sampled), groups)
    rates = theta.to(device, torch.float64)
    picked = query.index_select(1, sampled)
    found = torch.zeros(3, query.shape[0] * heads, groups, count, dtype=compute, device=device)
    for (query_row, query_rows, kind), members in _alike(reads, runs, columns).items():
        own = torch.stack([picked[batch, :, head] for batch, head, _ in members]).to(compute) * scale
        keys = [head_rows(key, batch, head, heads) for batch, head, _ in members]
        first_rows = [rows for *_, rows in members]
        lengths, shifts, column = torch.tensor(kind).unbind(-1)
        run_of_row = torch.arange(len(kind)).repeat_interleave(lengths).to(device, non_blocking=True)
        angles = shifts[:, None].to(device, torch.float64, non_blocking=True) * rates
        # The last column counts every row: its probability is the denominator of the others.
        counted = torch.cat((column[:, None] == torch.arange(count), torch.ones(len(kind), 1)), dim=-1)
        rows_of = (counted[:, :count] * lengths[:, None]).sum(0).clamp(min=1).to(device, compute, non_blocking=True)
        counted = counted.to(device, compute, non_blocking=True)
        sums = _Sums(own, count)
        for here, pieces in _blocks([rows for rows, *_ in kind], block):
            k, runs_here = _gathered(keys, first_rows, pieces).to(compute), run_of_row[here]
            if any(kind[run][1] for run, *_ in pieces):
                k = turn(k, angles.index_select(0, runs_here), first_pair, style)
            sums.add(own, k, counted.index_select(0, runs_here))
        inside = (sampled >= query_row) & (sampled < query_row + query_rows)
        each = torch.stack(sums.finish(own, rows_of)).where(inside[:, None], 0.0)
        by_group = (
            each.unflatten(2, (groups, -1)).sum(3) if len(sampled) else found.new_zeros(3, len(own), groups, count)
        )
        cells = torch.tensor([batch * heads + head for batch, head, _ in members])
        found.index_add_(1, cells.to(device, non_blocking=True), by_group)
    return Statistics(*(found * (groups / room)).to(torch.float32).unflatten(1, (-1, heads)))


class _Sums:
    """The sums of one kind of heads over the blocks of their keys so far.

    Attributes:
        weight: [heads, R, count + 1], exp(score - peak). spread: the same of exp(score - peak) * (peak - score).
        key: [heads, count, D], the keys themselves. peak: [heads, R, 1], the highest score.
    """

    def __init__(self, own: Tensor, count: int) -> None:
        self.peak = own.new_full((*own.shape[:2], 1), -torch.inf)
        self.weight = own.new_zeros(*own.shape[:2], count + 1)
        self.spread = torch.zeros_like(self.weight)
        self.key = own.new_zeros(len(own), count, own.shape[-1])

    def add(self, own: Tensor, k: Tensor, counted: Tensor) -> None:
        """One more block: the scaled query rows [heads, R, D], its keys [heads, rows, D], and `counted` [rows, count +
        1], 1 where a row counts to a sum. Its scores exist once: each step overwrites them."""
        scores = own @ k.mT
        peak = torch.maximum(self.peak, scores.amax(-1, keepdim=True))
        weights = scores.sub_(peak).exp_()
        # The first block has no peak before it, and nothing to be scaled.
        fallen = torch.where(self.peak.isinf(), 0.0, peak - self.peak)
        decay = fallen.neg().exp_()
        self.spread = (self.spread + fallen * self.weight) * decay
        self.weight = self.weight * decay + weights @ counted
        self.spread += torch.special.entr(weights, out=weights) @ counted
        self.key += counted[:, :-1].T @ k
        self.peak = peak

    def finish(self, own: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mass, mean logit and entropy of every sampled row, [heads, R, count] each; `rows` [count] of the columns."""
        total = self.weight[..., -1:]
        mass = self.weight[..., :-1] / total
        # Scores are linear in the keys, so their mean is the score of the mean key.
        logit = own @ (self.key / rows[:, None]).mT
        return mass, logit, self.spread[..., :-1] / total + mass * total.log()


def _alike(reads: Tensor, runs: Tensor, columns: Tensor) -> dict[Kind, list[Member]]:
    """The reads with query rows and key rows, those together that differ only in where the key rows are."""
    table = [(*run, column) for run, column in zip(runs.tolist(), columns.tolist(), strict=True)]
    alike: dict[Kind, list[Member]] = {}
    for batch, head, query_row, query_rows, first_run, length, *_ in reads.tolist():
        own = [run for run in table[first_run : first_run + length] if run[1]]
        if query_rows and own:
            kind = query_row, query_rows, tuple((rows, shift, column) for _, rows, shift, column in own)
            alike.setdefault(kind, []).append((batch, head, tuple(row for row, *_ in own)))
    return alike


def _blocks(lengths: Sequence[int], block: int) -> Iterator[tuple[slice, list[tuple[int, int, int]]]]:
    """The rows of all runs, one run after the other, cut into blocks of at most `block`.

    For every block: which of all rows it has, and its pieces (run, first, last + 1) in rows of the run.
    """
    total, run, first = sum(lengths), 0, 0
    for start in range(0, total, block):
        here = slice(start, min(start + block, total))
        pieces, missing = [], here.stop - here.start
        while missing:
            last = min(lengths[run], first + missing)
            pieces.append((run, first, last))
            missing -= last - first
            run, first = (run + 1, 0) if last == lengths[run] else (run, last)
        yield here, pieces


def _gathered(
    keys: Sequence[Tensor], first_rows: Sequence[Sequence[int]], pieces: Sequence[tuple[int, int, int]]
) -> Tensor:
    """[heads, rows, D]: the rows of a block of every head. Slices and one `cat`: nothing has to be sent for it."""
    parts = [
        rows[start[run] + first : start[run] + last]
        for rows, start in zip(keys, first_rows, strict=True)
        for run, first, last in pieces
    ]
    return torch.cat(parts).unflatten(0, (len(keys), -1))
