"""V3: what a target computed against attention in float64, on the very operands of the launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.budget import Budget, budget_of
from ...kernels.reference import ragged_attention
from ..watch import Launch

SAMPLED = 4
"""Query rows of each read that are looked at, unless all are."""


@dataclass(frozen=True)
class Deviation:
    """One read whose result is not within the budget.

    Attributes:
        read: its number in the table. batch, head: whose it is. rows: of the query that were looked at.
        error, limit: the largest deviation from attention in float64, and what is allowed.
        likeness: what the result looks like instead, where that can be said; run: the run that this is about, or None.
    """

    read: int
    batch: int
    head: int
    rows: tuple[int, ...]
    error: float
    limit: float
    likeness: str = ""
    run: int | None = None

    @property
    def excess(self) -> float:
        """How many times the limit the error is."""
        return self.error / self.limit if 0 < self.limit < float("inf") else float("inf")


def deviation(launch: Launch, result: Tensor, sampled: int | None = SAMPLED, seed: int = 0) -> Deviation | None:
    """The read that is furthest over its budget; None if every read is within.

    Args:
        launch: the operands. result: [B, S, H, Dv], what the target made of them.
        sampled: how many query rows of each read are looked at, None for all; `seed` chooses which.
    """
    worst: Deviation | None = None
    named = torch.zeros(result.shape[:3], dtype=torch.bool)
    for number, (batch, head, first, count, *_) in enumerate(launch.reads.tolist()):
        if not count:
            continue
        named[batch, first : first + count, head] = True
        rows = _rows(first, count, sampled, seed + number)
        budget, its = _budget(launch, number, rows), result[batch, rows, head]
        if not budget.holds(its):
            found = Deviation(number, batch, head, tuple(rows), budget.error(its), budget.limit)
            worst = found if worst is None or found.excess > worst.excess else worst
    if worst is not None:
        likeness, run = _likeness(launch, worst, result)
        return replace(worst, likeness=likeness, run=run)
    unnamed = result[~named.to(result.device)]
    if unnamed.numel() and bool(unnamed.ne(0).any()):
        batch, row, head = ((~named) & result.ne(0).any(-1).cpu()).nonzero()[0].tolist()
        return Deviation(
            -1, batch, head, (row,), float(unnamed.abs().max()), 0.0, "a value where no read names the row"
        )
    return None


def _rows(first: int, count: int, sampled: int | None, seed: int) -> list[int]:
    if sampled is None or sampled >= count:
        return list(range(first, first + count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:sampled]
    return sorted(first + int(row) for row in drawn)


def _alone(launch: Launch, read: int, rows: Sequence[int]) -> Launch:
    """One read by itself, for some rows of its query."""
    batch, head, _, _, first_run, runs, *_ = launch.reads[read].tolist()
    one = launch.reads.new_tensor([[batch, head, 0, len(rows), first_run, runs, 1, 0]])
    return launch._replace(query=launch.query[:, list(rows)], reads=one)


def _budget(launch: Launch, read: int, rows: Sequence[int]) -> Budget:
    alone = _alone(launch, read, rows)
    budget = budget_of(*alone)
    batch, head = alone.reads[0, :2].tolist()
    return Budget(budget.exact[batch, :, head], budget.limit)


def _likeness(launch: Launch, worst: Deviation, result: Tensor) -> tuple[str, int | None]:
    """What the target seems to have computed, among the usual faults."""
    if worst.limit != worst.limit:
        return "keys or values that are not finite", None
    found = result[worst.batch, list(worst.rows), worst.head].double()
    if not bool(found.isfinite().all()):
        return "not finite", None
    for words, run, other in _faults(_alone(launch, worst.read, worst.rows)):
        exact = ragged_attention(other.query.double(), *other[1:])[worst.batch, :, worst.head]
        if float((found - exact).abs().max()) <= worst.limit:
            return words, run
    return "", None


def _faults(alone: Launch) -> Iterator[tuple[str, int | None, Launch]]:
    """Launches that go wrong in one thing, and how to say it."""
    _, _, _, _, first, count, *_ = alone.reads[0].tolist()
    runs = alone.runs[first : first + count].tolist()
    for i, (row, rows, shift) in enumerate(runs):
        rest = runs[:i] + runs[i + 1 :]
        if rest:
            yield "as if the run were missing", first + i, _with(alone, rest)
        for other in dict.fromkeys((0, shift - 1, shift + 1)):
            if other != shift and alone.theta.numel():
                moved = [*runs[:i], [row, rows, other], *runs[i + 1 :]]
                yield f"as if the run stood at shift {other}", first + i, _with(alone, moved)
    for scale in (1.0, alone.scale**2, 2 * alone.scale):
        yield f"as if the scale were {scale:g}", None, alone._replace(scale=scale)


def _with(alone: Launch, runs: list[list[int]]) -> Launch:
    reads = alone.reads.clone()
    reads[0, 4], reads[0, 5] = 0, len(runs)
    return alone._replace(reads=reads, runs=alone.runs.new_tensor(runs))
