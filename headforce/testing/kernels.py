"""The laws of a kernel: within the budget of its reference, the same every time, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.budget import Budget, limit
from ..registered import own_docstring
from .laws import about
from .rig import DOUBLE
from .streams import LOW

Kernel = Callable[..., Any]
"""A function of tensors and other things that gives a tensor, several, or None."""


def check_kernel(
    kernel: Kernel,
    reference: Kernel,
    cases: Iterable[Sequence[Any]],
    *,
    mutates: Sequence[int] = (),
    keeps: Sequence[int] = (),
    dtypes: Sequence[torch.dtype] = LOW,
) -> None:
    """Every law for one kernel; AssertionError names the kernel, the case and the law.

    Args:
        reference: the same in plain torch, in any floating dtype: what it gives in float64 is what is right, and what
            it gives in the kernel's dtype says how much error is allowed, see `kernels.budget`.
        cases: arguments. Floating tensors are converted to every one of `dtypes`; poison what may not be read with NaN,
            which has to stay where the reference leaves it.
        mutates: which arguments it writes. keeps: which keep float64 (angles).
    """
    name = getattr(kernel, "__name__", str(kernel))
    with about(f"kernel {name}"):
        assert own_docstring(reference), "its reference lacks a docstring"
        for i, case in enumerate(cases):
            for dtype in dtypes:
                with about(f"case {i} in {dtype}"):
                    _check(kernel, reference, case, mutates, keeps, dtype)


def _check(
    kernel: Kernel, reference: Kernel, case: Sequence[Any], mutates: Sequence[int], keeps: Sequence[int], dtype: Any
) -> None:
    def given(to: torch.dtype) -> list[Any]:
        low = [_converted(x, i, dtype, keeps) for i, x in enumerate(case)]
        return [_converted(x, i, to, keeps) for i, x in enumerate(low)]

    exact, plain = (_results(reference, given(to), mutates) for to in (DOUBLE, dtype))
    arguments = given(dtype)
    made = _results(kernel, arguments, mutates)
    for i, (before, after) in enumerate(zip(given(dtype), arguments, strict=True)):
        if i not in mutates and isinstance(before, Tensor):
            assert torch.equal(before.nan_to_num(9), after.nan_to_num(9)), f"it changes argument {i}"
    again = _results(kernel, given(dtype), mutates)
    assert len(made) == len(exact), f"{len(made)} results, and {len(exact)} of the reference"
    for i, (result, wanted, low, other) in enumerate(zip(made, exact, plain, again, strict=True)):
        assert result.shape == wanted.shape, f"result {i} is {tuple(result.shape)}, not {tuple(wanted.shape)}"
        assert result.dtype == low.dtype, f"result {i} is {result.dtype}, not {low.dtype}"
        assert torch.equal(result.isnan(), wanted.isnan()), f"result {i} has NaN in other places than the reference"
        assert torch.equal(result.nan_to_num(9), other.nan_to_num(9)), f"result {i} differs from one run to the next"
        numbers = [x[~wanted.isnan()] for x in (result, wanted, low)]
        budget = Budget(numbers[1].double(), limit(numbers[1].double(), numbers[2]))
        off = budget.error(numbers[0])
        assert budget.holds(numbers[0]), f"result {i} is off by {off:.2e}, and {budget.limit:.2e} is allowed"


def _converted(x: Any, place: int, dtype: torch.dtype, keeps: Sequence[int]) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(dtype, copy=True) if x.is_floating_point() and place not in keeps else x.clone()


def _results(function: Kernel, arguments: list[Any], mutates: Sequence[int]) -> list[Tensor]:
    """What a function gives, and then the arguments that it writes."""
    given = function(*arguments)
    outputs = [] if given is None else [given] if isinstance(given, Tensor) else list(given)
    return [x for x in outputs if x is not None] + [arguments[i] for i in mutates]
