"""The levels of verification over a rollout: structure, plans, the identity law, sites, drift."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..calls import Example
from ..errors import HeadforceError
from ..policy import Policy
from .rollout import Recorded, Way, deviations, record

JSON_VERSION = 1

NATIVE, AGAIN, POLICY = RUNS = ("native", "again", "policy")
"""Rollouts of a compiled model: under `native()` with every check on, a second time without, and under a policy."""

LEVEL_OF = {"HF-VERIFY-PLAN": "V1", "HF-VERIFY-SITE": "V3"}


@dataclass(frozen=True)
class Line:
    """One level: its name, whether it holds, and a sentence.

    Attributes:
        run: the rollout that it is about, one of `RUNS`.
        code: of the error with which it fails, if it is one.
        call: the number of the call of the model with which it fails, as far as that is known.
    """

    level: str
    holds: bool
    words: str
    run: str = NATIVE
    code: str = ""
    call: int | None = None

    def like(self, other: Line) -> bool:
        """Whether both fail in the same way."""
        mine, its = ((line.holds, line.run, line.level, line.code) for line in (self, other))
        return mine == its


@dataclass(frozen=True)
class Verdict:
    """What came of verifying a model.

    Attributes:
        lines: V0 to V4, as far as they could be run.
        drift: for every call of the model, the deviation from eager under `native()`.
        limit: the deviation that is allowed in any call.
        seconds, compiling: of all rollouts, the time of the calls, checks included, and of compiling.
    """

    lines: tuple[Line, ...]
    drift: tuple[float, ...]
    limit: float
    seconds: float = 0.0
    compiling: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every level holds."""
        return self.failing is None

    @property
    def failing(self) -> Line | None:
        """The first level that does not hold."""
        return next((line for line in self.lines if not line.holds), None)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data; null for a deviation that is not finite."""
        return {
            "version": JSON_VERSION,
            "holds": self.holds,
            "lines": [vars(line) for line in self.lines],
            "drift": [finite(value) for value in self.drift],
            "limit": finite(self.limit),
        }

    def __str__(self) -> str:
        return "\n".join(f"{line.level}  {'holds' if line.holds else 'FAILS'}  {line.words}" for line in self.lines)


ASKED = ("HF-POLICY-SHAPE", "HF-OPTION", "HF-TARGET", "HF-UNBOUNDED", "HF-SEGMENTS", "HF-HORIZON")
"""Refusals of what was asked for, such as a policy of another model. They say nothing about how it is compiled."""


def allowed(eager: Recorded) -> float:
    """The deviation of a model's output, as a share of its largest value, that another order of sums may cause.

    It is that of the dtype of the first output that is no whole number.
    """
    tensors = (tensor for output in eager.outputs for tensor in output)
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    return max(4 * torch.finfo(dtype).eps, 1e-5)


def finite(value: float) -> float | None:
    """JSON has neither infinity nor NaN: null stands for them."""
    return value if math.isfinite(value) else None


def verify(
    example: Example, policy: Policy | None, way: Way, limit: float | None = None, runs: Collection[str] = RUNS
) -> Verdict:
    """Runs an example eager, compiled under `native()` twice, and under a policy with every check on.

    Args:
        policy: what heads remember in the last run; None leaves that run out.
        way: how the model is compiled; its policy and its checks are set here.
        limit: the deviation from eager that is allowed in any call, as a share of the largest value; by default what
            the dtype of the outputs suggests.
        runs: of `RUNS`, those that are made. The second needs the first.

    Raises HF-ADAPTER, HF-EXAMPLE and those of `ASKED`. What a level finds is in the verdict.
    """
    eager = record(example, Way())
    limit = allowed(eager) if limit is None else limit
    levels = _Levels(example, eager, limit)
    native = replace(way, policy=Policy({}), canonical=True, verify="full")
    if NATIVE in runs and levels.checked(native, NATIVE, "under native()"):
        levels.compared()
        if AGAIN in runs and levels.run(replace(native, verify="off"), AGAIN, "a second time"):
            levels.repeated()
    if POLICY in runs and policy is not None:
        levels.checked(replace(way, policy=policy, verify="full"), POLICY, "under the policy")
    return levels.verdict()


class _Levels:
    """The lines of a verdict, as rollouts are made."""

    def __init__(self, example: Example, eager: Recorded, limit: float) -> None:
        self._example, self._eager, self._limit = example, eager, limit
        self._lines: list[Line] = []
        self._drift: list[float] = []
        self._made = {"eager": eager}

    def verdict(self) -> Verdict:
        seconds = sum(one.seconds for one in self._made.values())
        compiling = sum(one.compiling for one in self._made.values())
        return Verdict(tuple(self._lines), tuple(self._drift), self._limit, seconds, compiling)

    def run(self, way: Way, run: str, where: str) -> bool:
        """Makes a rollout; False, and a line, if it raises."""
        found = self._made[run] = Recorded()
        try:
            record(self._example, way, found)
        except HeadforceError as error:
            if error.code in ASKED:
                raise
            level, call = LEVEL_OF.get(error.code, "V0"), len(found.outputs)
            self._lines.append(Line(level, False, f"{where}, call {call}: {error}", run, error.code, call))
            return False
        return True

    def checked(self, way: Way, run: str, where: str) -> bool:
        """A rollout with every check on: V0, V1 and V3."""
        if not self.run(way, run, where):
            return False
        found = self._made[run]
        structure = found.rewritten > 0 and not found.refused and not found.misses
        words = f"{found.rewritten} sites rewritten, {found.refused} refused, launches of each layer {found.launches}"
        self._lines += [
            Line("V0", structure, f"structure {where}: {words}", run),
            Line("V1", True, f"plans and tables {where} are what the oracle says", run),
            Line("V3", True, f"every launch {where} is attention in float64, within its budget", run),
        ]
        return True

    def compared(self) -> None:
        """V2: the rollout under `native()` against the eager one."""
        self._drift = drift = deviations(self._made[NATIVE], self._eager)
        worst = max(range(len(drift)), key=drift.__getitem__)
        first = next((i for i, error in enumerate(drift) if error > self._limit), None)
        words = f"call {worst} of {len(drift)} is furthest from eager: {drift[worst]:.2g}, {self._limit:.2g} is allowed"
        if first is not None:
            words += f"; call {first} is the first that departs"
        self._lines.append(Line("V2", first is None, f"identity under native(): {words}", NATIVE, call=first))

    def repeated(self) -> None:
        """V4: how the difference grows, and the second rollout against the first."""
        same = deviations(self._made[AGAIN], self._made[NATIVE])
        first = next((i for i, error in enumerate(same) if error), None)
        words = f"drift {_curve(self._drift)}; a second rollout {_same(same)}"
        self._lines.append(Line("V4", first is None, words, AGAIN, call=first))


def _curve(drift: list[float]) -> str:
    return " ".join(f"{value:.1g}" for value in drift[:: max(1, len(drift) // 8)])


def _same(deviation: list[float]) -> str:
    return "is the same to the bit" if not any(deviation) else f"differs by {max(deviation):.2g}"
