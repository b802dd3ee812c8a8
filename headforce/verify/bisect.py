"""Where a compiled model first departs from the eager one: which call, and which attention site."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..calls import Example
from ..policy import Policy
from .rollout import Way, deviations, most_sites, record
from .verdict import allowed, finite


@dataclass(frozen=True)
class Culprit:
    """What a bisection found.

    Attributes:
        call: the first call of the model that departs from eager; None if none does.
        error: how far. runs: rollouts that it took.
        site: the number of the site in its graph at which it begins, in graph order; None if it departs also where
            every site runs the reference, so that the target is not at fault.
    """

    call: int | None
    error: float
    runs: int
    site: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What was found as plain data; null for an error that is not finite."""
        return {**vars(self), "error": finite(self.error)}

    def __str__(self) -> str:
        if self.call is None:
            return f"no call departs from eager (largest deviation {self.error:.2g})"
        head = f"call {self.call} departs from eager by {self.error:.2g}"
        if self.site is None:
            return f"{head}, also with the reference in place of the target: the pass or the plan is at fault"
        return f"{head}; it takes site {self.site} of its graph on the target, the sites before it are right"


def bisect(example: Example, way: Way, limit: float | None = None) -> Culprit:
    """Halves the sites that run on the target, the others running the reference, under `native()`.

    Args:
        way: how the model is compiled; its policy is set here. limit: as in `verify`.
    """
    eager = record(example, Way())
    limit = allowed(eager) if limit is None else limit
    runs = 0

    def first_wrong(sites: int | None) -> tuple[int | None, float, int]:
        nonlocal runs
        runs += 1
        with most_sites(sites):
            found = record(example, replace(way, policy=Policy({}), canonical=True))
        errors = deviations(found, eager)
        wrong = next((i for i, error in enumerate(errors) if error > limit), None)
        return wrong, errors[wrong] if wrong is not None else max(errors), len(found.launches)

    call, error, layers = first_wrong(None)
    if call is None or first_wrong(0)[0] is not None:
        return Culprit(call, error, runs)
    right, wrong = 0, layers
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if first_wrong(middle)[0] is None:
            right = middle
        else:
            wrong = middle
    return Culprit(call, error, runs, wrong - 1)
