"""The public test kit: every law that a new operator, score, target, kernel, recogniser or adapter has to keep.

    from headforce.testing import check_policy_op

    def test_my_op():
        check_policy_op("mine")

`rules`, `policies`, `schedules` and so on are hypothesis strategies. `rig` is a stream with attention computed from the
oracle alone, `zoo` has small models in many spellings, `recording` a backend that checks what was recognised. Needs the
package `hypothesis` where arguments are drawn.
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
    from .strategies import decisions, maps, ops, policies, rules, schedules
    from .streams import rigs
    from .targets import check_target

# Lazy: a machine that only runs kernels has no hypothesis, and policies are tested without torch.
_HOMES = {
    "..kernels.budget": ("Budget", "budget_of"),
    ".adapters": ("check_adapter",),
    ".asserts": ("assert_refused", "assert_rewritten"),
    ".kernels": ("check_kernel",),
    ".peaked": ("peak", "spread"),
    ".policy_ops": ("check_policy_op",),
    ".recognizers": ("check_recognizer",),
    ".scores": ("check_score",),
    ".strategies": ("decisions", "maps", "ops", "policies", "rules", "schedules"),
    ".streams": ("rigs",),
    ".targets": ("check_target",),
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
    "decisions",
    "maps",
    "ops",
    "peak",
    "policies",
    "rigs",
    "rules",
    "schedules",
    "spread",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
