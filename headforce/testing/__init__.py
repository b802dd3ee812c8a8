"""The public test kit: every law that a new operator, score, target, kernel, recogniser or adapter has to keep.

    from headforce.testing import check_policy_op

    def test_my_op():
        check_policy_op("mine")

`strategies` has hypothesis strategies of operators, rules, policies and schedules, `rig` a stream with attention
computed from the oracle alone, `zoo` small models in many spellings, `recording` a backend that checks what was
recognised. Needs pytest's assertions nowhere, and hypothesis where arguments are drawn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..kernels.budget import Budget, budget_of
    from .adapters import check_adapter
    from .asserts import assert_refused, assert_rewritten
    from .kernels import check_kernel
    from .peaked import peak, spread
    from .policy_ops import check_policy_op
    from .recognizers import check_recognizer
    from .scores import check_score
    from .targets import check_target

# Lazy: a machine that only runs kernels has no hypothesis, and policies are tested without torch.
_HOMES = {
    "Budget": "..kernels.budget",
    "assert_refused": ".asserts",
    "assert_rewritten": ".asserts",
    "budget_of": "..kernels.budget",
    "check_adapter": ".adapters",
    "check_kernel": ".kernels",
    "check_policy_op": ".policy_ops",
    "check_recognizer": ".recognizers",
    "check_score": ".scores",
    "check_target": ".targets",
    "peak": ".peaked",
    "spread": ".peaked",
}

__all__ = [
    "Budget",
    "assert_refused",
    "assert_rewritten",
    "budget_of",
    "check_adapter",
    "check_kernel",
    "check_policy_op",
    "check_recognizer",
    "check_score",
    "check_target",
    "peak",
    "spread",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
