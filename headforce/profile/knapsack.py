"""The best choice for every head within a total cost: a multiple-choice knapsack.

Costs are whole pages, so a table over all budgets fits into memory: for the 1600 heads of a 14B model and a third of a
cache of 24 frames it has 13 000 columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def assign(gains: Floats, costs: Ints, budget: int, upto: int | None = None) -> tuple[Ints, Floats]:
    """For every head the choice that makes the sum of gains largest, with a sum of costs of at most `budget`.

    Args:
        gains: [heads, choices]. costs: [choices], whole numbers of at least 0. upto: the largest budget that anything
            is to be said about, by default `budget`.

    Returns the choices [heads], of equal sums one that costs least, and [upto + 1] the largest sum within every budget,
    -inf where there is none. Exact, by dynamic programming over the heads; `budget` must be enough for the cheapest
    choices.
    """
    (heads, count), width = gains.shape, (budget if upto is None else max(upto, budget)) + 1
    best = np.zeros(width)
    taken = np.zeros((heads, width), dtype=np.min_scalar_type(count))
    for head in range(heads):
        sums = np.full((count, width), -np.inf)
        for choice, cost in enumerate(costs):
            if cost < width:
                sums[choice, cost:] = best[: width - cost] + gains[head, choice]
        taken[head] = sums.argmax(0)
        best = sums.max(0)
    left = int(best[: budget + 1].argmax())  # the first of equals
    which = np.zeros(heads, dtype=np.int64)
    for head in reversed(range(heads)):
        which[head] = taken[head, left]
        left -= int(costs[which[head]])
    return which, best
