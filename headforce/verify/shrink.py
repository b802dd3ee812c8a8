"""From a rollout that fails to the smallest that still fails in the same way, and the folder that shows it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calls import sizes_of
from ..lowering.verify import Verification, publish
from .case import Case
from .smaller import WAYS
from .verdict import AGAIN, NATIVE, POLICY, Line, Verdict

ATTEMPTS = 100
"""Smaller rollouts that are tried at most."""

REPRO = '''"""{summary}

`python repro.py`, in the folder where `headforce verify {example}` was run, makes the rollout of this folder again and
checks it as that does; the exit status is 1 while it fails.
"""

import sys
from pathlib import Path

from headforce.verify.case import Case

verdict = Case.load(Path(__file__).parent).verdict()
print(verdict)
print(f"{{verdict.seconds:.2f}} s of calls and checks, {{verdict.compiling:.2f}} s of compiling")
sys.exit(not verdict.holds)
'''


@dataclass(frozen=True)
class Shrunk:
    """The smallest rollout that was found to fail.

    Attributes:
        before, case: the rollout as it was, and as it is now. verdict: of the latter.
        tried: rollouts that were checked on the way. folder: where it is written to.
    """

    before: Case
    case: Case
    verdict: Verdict
    tried: int
    folder: Path

    def __str__(self) -> str:
        fails = self.verdict.failing
        words = "it did not fail when it was run once more" if fails is None else f"{fails.level}  {fails.words}"
        repro = self.folder / "repro.py"
        return (
            f"smallest rollout found that fails like it, {self.tried} tried: {'; '.join(self.words())}\n"
            f"  {words}\n"
            f"It is written to {self.folder}; `python {repro}` shows it again"
            f" ({self.verdict.seconds:.2f} s of calls and checks, {self.verdict.compiling:.1f} s of compiling)."
        )

    def words(self) -> list[str]:
        """What is left of it."""
        case, whole = self.case, {**sizes_of(self.case.example), **dict(self.before.sizes)}
        words = [] if case.calls is None else [f"calls {', '.join(map(str, case.calls))}"]
        words += [f"{name} {_text(value)} (was {_text(whole[name])})" for name, value in case.sizes]
        if case.policy != self.before.policy and case.policy is not None:
            words.append(f"a policy with the classes {', '.join(case.policy.classes) or 'of the model itself'}")
        if case.sites is not None:
            words.append(f"the first {case.sites} sites on the target" if case.sites else "all sites on the reference")
        if case.way.inner != self.before.way.inner:
            words.append(f"inner={case.way.inner}")
        return words or ["as it was"]

    def to_json(self) -> dict[str, Any]:
        """What was found, as plain data."""
        return {"tried": self.tried, "left": self.words(), "folder": str(self.folder)}


def shrink(case: Case, verdict: Verdict) -> Shrunk:
    """Makes a rollout smaller for as long as it fails like before, and writes it to the folder of failures.

    A smaller rollout counts only if the same run fails at the same level, with the same code. One that breaks in
    another way, or that the model itself refuses, does not.

    Args:
        case: what fails. verdict: its verdict, of which a level does not hold.
    """
    wanted = verdict.failing
    assert wanted is not None, "a rollout that fails"
    runs = (NATIVE, AGAIN) if wanted.run == AGAIN else (wanted.run,)
    policy = case.policy if wanted.run == POLICY else None
    small = _Search(replace(case, runs=runs, policy=policy, way=replace(case.way, writes=False)), wanted)
    small.search()
    found = small.case.verdict()  # once more by itself: this is what the folder has to show
    return Shrunk(case, small.case, found, small.tried, _written(small.case, found))


class _Search:
    def __init__(self, case: Case, failing: Line) -> None:
        self.case, self.failing = case, failing
        self.tried = 0
        self._refused: set[Case] = set()

    def search(self) -> None:
        """One way after the other, as often as any of them helps."""
        before: Case | None = None
        while before != self.case and self.tried < ATTEMPTS:
            before = self.case
            for way in WAYS:
                while any(self._fails(smaller) for smaller in way(self.case, self.failing)):
                    pass

    def _fails(self, case: Case) -> bool:
        """Tries a case, and goes on with it if it fails as is wanted."""
        if case in self._refused or self.tried >= ATTEMPTS:
            return False
        self.tried += 1
        try:
            found = case.verdict().failing
        except Exception:  # sizes that the model does not have, calls that do not follow from each other
            found = None
        if found is None or not found.like(self.failing):
            self._refused.add(case)
            return False
        self.case, self.failing = case, found
        return True


def _written(case: Case, verdict: Verdict) -> Path:
    folder = Verification.of("off").folder
    assert folder is not None
    fails = verdict.failing
    summary = "A rollout that fails." if fails is None else f"{fails.level} fails. {fails.words}"
    files = {
        **case.files(),
        "repro.py": REPRO.format(summary=_quoted(summary), example=_quoted(case.example)).encode(),
        "verdict.txt": f"{verdict}\n".encode(),
    }
    return publish(folder / f"rollout-{case.digest}", files)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _text(value: int | tuple[int, ...]) -> str:
    return str(value) if isinstance(value, int) else ",".join(map(str, value))
