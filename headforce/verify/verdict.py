"""The levels of verification over a rollout: structure, plans, the identity law, sites, drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..calls import Example
from ..errors import HeadforceError
from ..policy import Policy
from .rollout import Recorded, Way, deviations, record

JSON_VERSION = 1


@dataclass(frozen=True)
class Line:
    """One level: its name, whether it holds, and a sentence."""

    level: str
    holds: bool
    words: str


@dataclass(frozen=True)
class Verdict:
    """What came of verifying a model.

    Attributes:
        lines: V0 to V4, as far as they could be run.
        drift: for every call of the model, the deviation from eager under `native()`.
        limit: the deviation that is allowed in any call.
    """

    lines: tuple[Line, ...]
    drift: tuple[float, ...]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether every level holds."""
        return all(line.holds for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data."""
        lines = [vars(line) for line in self.lines]
        return {"version": JSON_VERSION, "holds": self.holds, "lines": lines, "drift": self.drift, "limit": self.limit}

    def __str__(self) -> str:
        return "\n".join(f"{line.level}  {'holds' if line.holds else 'FAILS'}  {line.words}" for line in self.lines)


def allowed(dtype: torch.dtype) -> float:
    """The deviation of a model's output, as a share of its largest value, that another order of sums may cause."""
    return max(4 * torch.finfo(dtype).eps, 1e-5)


def verify(example: Example, policy: Policy | None, way: Way, limit: float | None = None) -> Verdict:
    """Runs an example eager, compiled under `native()` twice, and under a policy with every check on.

    Args:
        policy: what heads remember in the last run; None leaves that run out.
        way: how the model is compiled; its policy and its checks are set here.
        limit: the deviation from eager that is allowed in any call, as a share of the largest value; by default what
            the dtype of the outputs suggests.

    Raises HF-ADAPTER and HF-EXAMPLE. What a level finds is in the verdict.
    """
    eager = record(example, Way())
    limit = allowed(eager.outputs[0][0].dtype) if limit is None else limit
    native = replace(way, policy=Policy({}), canonical=True, verify="full")
    lines: list[Line] = []
    drift: list[float] = []
    found = _run(lines, lambda: record(example, native), "under native()")
    if found is not None:
        drift = deviations(found, eager)
        worst = max(range(len(drift)), key=drift.__getitem__)
        words = f"call {worst} of {len(drift)} is furthest from eager: {drift[worst]:.2g}, {limit:.2g} is allowed"
        lines.append(Line("V2", drift[worst] <= limit, f"identity under native(): {words}"))
        again = _run(lines, lambda: record(example, replace(native, verify="off")), "a second time", quiet=True)
        if again is not None:
            same = deviations(again, found)
            lines.append(Line("V4", not any(same), f"drift {_curve(drift)}; a second rollout {_same(same)}"))
    if policy is not None:
        _run(lines, lambda: record(example, replace(way, policy=policy, verify="full")), "under the policy")
    return Verdict(tuple(lines), tuple(drift), limit)


def _run(lines: list[Line], run: Callable[[], Recorded], where: str, *, quiet: bool = False) -> Recorded | None:
    """A rollout with every check on; its V0, V1 and V3 as lines."""
    try:
        found = run()
    except HeadforceError as error:
        level = {"HF-VERIFY-PLAN": "V1", "HF-VERIFY-SITE": "V3"}.get(error.code, "V0")
        lines.append(Line(level, False, f"{where}: {error}"))
        return None
    if not quiet:
        structure = found.rewritten > 0 and not found.refused and not found.misses
        words = f"{found.rewritten} sites rewritten, {found.refused} refused, launches of each layer {found.launches}"
        lines.append(Line("V0", structure, f"structure {where}: {words}"))
        lines.append(Line("V1", True, f"plans and tables {where} are what the oracle says"))
        lines.append(Line("V3", True, f"every launch {where} is attention in float64, within its budget"))
    return found


def _curve(drift: list[float]) -> str:
    return " ".join(f"{value:.1g}" for value in drift[:: max(1, len(drift) // 8)])


def _same(deviation: list[float]) -> str:
    return "is the same to the bit" if not any(deviation) else f"differs by {max(deviation):.2g}"
