"""A policy within a budget: for every head the rule that keeps most of the attention that was measured.

Which rule each head gets is decided for all heads together, and exactly: see `knapsack.assign`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..kvpass.view_plans import view_rule
from ..policy import BoundPolicy, Chunk, FrameSet, Policy, Rule, parse_rule
from .knapsack import Floats, Ints, assign
from .measured import Pass, Profile

RULES = (
    "drop()",
    "window(1)",
    "window(2)",
    "window(3)",
    "window(6)",
    "window(9)",
    "sink(1)",
    "sink(1) | window(1)",
    "sink(1) | window(3)",
    "sink(1) | window(6)",
    "sink(3) | window(3)",
    "stride(6, phase=0, last=3) | window(1)",
    "sink(1) | stride(6, phase=0, last=3) | window(3)",
)
"""The candidates that are tried if nobody names others."""

NATIVE = "native"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rules that a head may get.

    Attributes:
        rules: by name of the class; the last is what the model itself reads. pages: [rules], pages of K and V that a
            head takes, the chunk's included. kept: [rules, layers, heads], the share of measured attention on the
            frames that the rule reads. frame_bytes: of a page.
    """

    rules: dict[str, Rule]
    pages: Ints
    kept: Floats
    frame_bytes: int

    @property
    def names(self) -> list[str]:
        return list(self.rules)

    @property
    def dense(self) -> int:
        """Pages that all heads take as the model is."""
        return int(self.pages[-1]) * self.kept[0].size

    def bytes(self, pages: int) -> int:
        """Bytes of K and V in so many pages of one video."""
        return pages * self.frame_bytes


@dataclass(frozen=True, eq=False)
class Budgeted:
    """The best policy within a budget.

    Attributes:
        which: [layers, heads], the number of the rule of every head. pages: that they take. kept: the mean share of
            attention that they keep.
        best: [dense + 1], the most that can be kept, as a mean over the heads, within every budget of whole pages; -inf
            where even the cheapest rules take more.
    """

    candidates: Candidates
    which: Ints
    pages: int
    kept: float
    best: Floats

    @property
    def bytes(self) -> int:
        """Bytes of K and V that one video holds under the policy."""
        return self.candidates.bytes(self.pages)

    @property
    def policy(self) -> Policy:
        """The policy, with a class for each rule in use."""
        names = np.array(self.candidates.names, dtype=object)[self.which]
        used = [name for name in self.candidates.names if (names == name).any()]
        default = max(used, key=lambda name: int((names == name).sum()))
        heads = {
            layer: {name: tuple(map(int, np.flatnonzero(row == name))) for name in used if name != default}
            for layer, row in enumerate(names)
        }
        heads = {layer: {name: its for name, its in of.items() if its} for layer, of in heads.items()}
        return Policy(
            {name: self.candidates.rules[name] for name in used},
            default=default,
            heads={layer: of for layer, of in heads.items() if of},
            made_for=names.shape,
        )


def candidates(profile: Profile, rules: Sequence[str] = RULES, *, chunks: int = 3, step: int = -1) -> Candidates:
    """What every rule would keep and cost, from one pass of the newest `chunks` chunks of every video.

    A rule that costs as much as the model's own or more is left out. Frames that the model did not read were not
    measured and count nothing, so of a rule that reads beyond the model's window this says too little.

    Raises HF-BUDGET for a rule with state or one that differs between the query frames of a chunk.
    """
    passes = [video.at(chunk, step) for video in profile.videos for chunk in video.chunks[-chunks:]]
    if not passes:
        raise HeadforceError("HF-PROFILE-DATA", found="no video", needed="at least one")
    native = _native(passes)
    named = check_rules(rules)
    longest = max(passed.chunk.frames for passed in passes)
    pages = {text: _pages(rule, longest) for text, rule in {**named, NATIVE: native}.items()}
    chosen = {text: rule for text, rule in named.items() if pages[text] < pages[NATIVE]} | {NATIVE: native}
    kept = [np.mean([_kept(rule, passed) for passed in passes], axis=0) for rule in chosen.values()]
    return Candidates(
        chosen, np.array([pages[text] for text in chosen]), np.array(kept, np.float64), profile.model.frame_bytes
    )


def check_rules(rules: Sequence[str]) -> dict[str, Rule]:
    """The candidates by their text.

    Raises HF-BUDGET for a rule with state or one that differs between query frames, HF-NATIVE for one with `native()`,
    and what `Policy.bind` raises, such as HF-UNBOUNDED.
    """
    named = {text: parse_rule(text) for text in dict.fromkeys(rules)}
    for text, rule in named.items():
        if rule.stateful or rule.by_query:
            raise HeadforceError(
                "HF-BUDGET",
                site=text,
                found="a rule with state, or that differs between query frames",
                needed="one set of frames for each chunk",
            )
        try:
            _bound(rule)
        except HeadforceError as error:
            raise _of_candidate(text, error) from error
    return named


def _of_candidate(text: str, error: HeadforceError) -> HeadforceError:
    """The refusal of a rule, with a remedy that a candidate has: it is given neither a horizon nor a native rule."""
    hints = {
        "HF-NATIVE": "What the model itself reads is among the candidates without being named.",
        "HF-UNBOUNDED": "Bound the rule, for example with last=.",
    }
    return HeadforceError(
        error.code, site=text, found=error.found, needed=error.needed, hint=hints.get(error.code, error.hint)
    )


def within(found: Candidates, share: float) -> Budgeted:
    """The assignment of rules to heads that keeps most, within `share` of what the model itself holds.

    Raises HF-BUDGET if not even the cheapest rules fit.
    """
    if not 0 < share <= 1:
        raise HeadforceError("HF-BUDGET", site="budget", found=f"{share}", needed="more than 0 and at most 1")
    budget = math.floor(share * found.dense + 1e-9)  # shares such as 37 / 84 are not exact
    kept = found.kept.reshape(len(found.pages), -1)
    least = int(found.pages.min()) * kept.shape[1]
    if least > budget:
        raise HeadforceError(
            "HF-BUDGET",
            site="budget",
            found=f"{share:.1%} of what the model holds, {found.bytes(budget)} bytes",
            needed=f"at least {found.bytes(least)}, for the cheapest rule in every head",
        )
    which, best = assign(kept.T, found.pages, budget, found.dense)
    return Budgeted(
        found,
        which.reshape(found.kept.shape[1:]),
        int(found.pages[which].sum()),
        float(np.take_along_axis(kept, which[None], 0).mean()),
        best / kept.shape[1],
    )


def _native(passes: Sequence[Pass]) -> Rule:
    """The rule of the unmodified model, from the pass that reads most."""
    widest = max(passes, key=lambda passed: (len(passed.keys), passed.chunk.index))
    return view_rule(FrameSet.of(widest.past), widest.chunk, len(widest.keys))


def _pages(rule: Rule, frames: int) -> int:
    """Pages that a head with this rule takes in a stream in chunks of so many frames, the chunk's included."""
    bound = _bound(rule)
    return bound.room(bound.rules[0][0], Chunk(0, 0, frames)) + frames


def _bound(rule: Rule) -> BoundPolicy:
    """The rule in a single head."""
    return Policy({"one": rule}, default="one").bind(layers=1, heads=1)


def _kept(rule: Rule, passed: Pass) -> npt.NDArray[np.float32]:
    """The probability on what a rule reads, [layers, heads]; a rule that mutes the chunk does not have that."""
    frames = rule.frames(passed.chunk, passed.chunk.start)
    return passed.on([*frames, *(passed.chunk.queries if rule.reads_chunk else ())])
