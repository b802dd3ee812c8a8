"""How far attention in low precision may be from its meaning: the budget that every target owes.

The error against attention in float64 is at most twice that of plain attention in the dtype of the query, plus a
rounding of the result. NaN is over any budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .reference import ragged_attention


@dataclass(frozen=True)
class Budget:
    """What one attention owes.

    Attributes:
        exact: the result in float64. limit: the largest deviation from it that is allowed.
    """

    exact: Tensor
    limit: float

    def error(self, result: Tensor) -> float:
        """The largest deviation of a result; infinite if any of it is not a finite number."""
        error = float((result.double() - self.exact).abs().max()) if result.numel() else 0.0
        return error if error < float("inf") else float("inf")

    def holds(self, result: Tensor) -> bool:
        """Whether a result is within the budget. None is where what is read is not finite."""
        error = self.error(result)
        return error < float("inf") and error <= self.limit


def rounding(dtype: torch.dtype) -> float:
    """A rounding of the result, and what scores summed in another order differ by, as a share of the largest value."""
    return torch.finfo(dtype).eps + 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def limit(exact: Tensor, plain: Tensor) -> float:
    """The deviation that is allowed. `plain` is the result of plain attention, in the dtype in question."""
    if not exact.numel():
        return 0.0
    return float(2 * (plain.double() - exact).abs().max() + rounding(plain.dtype) * exact.abs().max())


def budget_of(query: Tensor, *operands: Any) -> Budget:
    """The budget of ragged attention of these operands, which are those of `reference.ragged_attention`."""
    exact = ragged_attention(query.double(), *operands)
    return Budget(exact, limit(exact, ragged_attention(query, *operands)))
