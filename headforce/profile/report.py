"""The report of a profile: labels, how far they can be trusted, and what policies keep and cost. Plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import HeadforceError
from ..presets import Labels
from .budget import RULES, Budgeted, Candidates, candidates, within
from .classify import Classified, classify_heads
from .compare import contingency, rand_index, same, shuffled, stability, swapped
from .measured import Profile
from .methods import load_methods

VERSION = 1


@dataclass(frozen=True, eq=False)
class Judged:
    """Everything that is said about a profile.

    Attributes:
        chosen: the heads under the method that was asked for. others: under the other methods, those that can judge the
            profile. refused: why the rest cannot. stable: see `compare.stability`. controls: labels to compare with.
        candidates: what rules keep and cost. budgeted: the policy within the budget, if one was given.
    """

    profile: Profile
    chosen: Classified
    others: dict[str, Classified]
    refused: dict[str, str]
    stable: dict[str, float]
    controls: dict[str, Labels]
    candidates: Candidates
    budgeted: Budgeted | None


def judge(
    profile: Profile,
    method: str,
    *,
    chunk: int = -1,
    step: int = -1,
    constants: Mapping[str, Any] | None = None,
    budget: float | None = None,
    rules: Sequence[str] = RULES,
    seed: int = 0,
) -> Judged:
    """Classifies the heads of a profile, compares, and finds the policy for a budget.

    Args:
        method, chunk, step, constants: see `classify_heads`. budget: share of the bytes that the model itself holds.
        rules: candidates for it. seed: of the control with shuffled labels.
    """
    chosen = classify_heads(profile, method, chunk=chunk, step=step, **(constants or {}))
    others, refused = {}, {}
    for name, other in load_methods().items():
        if name == chosen.method.name:
            continue
        try:
            others[name] = classify_heads(profile, other, chunk=chunk, step=step)
        except HeadforceError as error:
            refused[name] = str(error)
    found = candidates(profile, rules, step=step)
    return Judged(
        profile,
        chosen,
        others,
        refused,
        stability(profile, method, chunk=chunk, step=step, **(constants or {})),
        {"shuffled": shuffled(chosen.labels, seed), "swapped": swapped(chosen.labels, chosen.score)},
        found,
        None if budget is None else within(found, budget),
    )


def to_json(judged: Judged) -> dict[str, Any]:
    """The report; see docs/profile.md for its keys."""
    profile, chosen = judged.profile, judged.chosen
    everyone = {chosen.method.name: chosen, **judged.others}
    return {
        "version": VERSION,
        "source": profile.source,
        "model": {
            "layers": profile.model.layers,
            "heads": profile.model.heads,
            "tokens_per_frame": profile.model.tokens_per_frame,
            "frame_bytes": profile.model.frame_bytes,
        },
        "videos": [{"name": dict(v.name), "passes": len(v.passes), "chunks": len(v.chunks)} for v in profile.videos],
        "method": chosen.method.name,
        "counts": chosen.labels.counts(),
        "by_layer": [{n: len(hs) for n, hs in chosen.labels.of(i).items()} for i in range(profile.model.layers)],
        "unanimous": float((chosen.votes == 1).mean()),
        "stability": judged.stable,
        "methods": {name: each.labels.counts() for name, each in everyone.items()},
        "refused": judged.refused,
        "agreement": [
            {"methods": list(names), "rand_index": rand_index(*pair), "heads": contingency(*pair)}
            for names, pair in _pairs({name: each.labels for name, each in everyone.items()})
        ],
        "controls": {name: {"same": same(chosen.labels, labels)} for name, labels in judged.controls.items()},
        "rules": [
            {"rule": name, "pages": int(pages), "kept": float(kept.mean())}
            for name, pages, kept in zip(
                judged.candidates.names, judged.candidates.pages, judged.candidates.kept, strict=True
            )
        ],
        "budget": None if judged.budgeted is None else _budget(judged.budgeted),
    }


def _pairs(labels: Mapping[str, Labels]) -> Iterator[tuple[tuple[str, str], tuple[Labels, Labels]]]:
    for a, b in combinations(labels, 2):
        yield (a, b), (labels[a], labels[b])


def _budget(found: Budgeted) -> dict[str, Any]:
    names = found.candidates.names
    counts = np.bincount(found.which.ravel(), minlength=len(names))
    return {
        "bytes": found.bytes,
        "dense_bytes": found.candidates.bytes(found.candidates.dense),
        "share": found.pages / found.candidates.dense,
        "kept": found.kept,
        "heads": {name: int(count) for name, count in zip(names, counts, strict=True) if count},
        "controls": {name: kept_by(found, which) for name, which in budget_controls(found).items()},
    }


def budget_controls(found: Budgeted, seed: int = 0) -> dict[str, Any]:
    """Assignments with the same rules, and so the same bytes, for other heads, [layers, heads] each.

    "shuffled": at random places. "swapped": the heads that need most get what those have that need least.
    """
    which = found.which.ravel()
    order = np.argsort(found.candidates.kept[-1].ravel() - found.candidates.kept[0].ravel(), kind="stable")
    turned = np.empty_like(which)
    turned[order] = which[order[::-1]]
    mixed = np.random.default_rng(seed).permutation(which)
    return {"shuffled": mixed.reshape(found.which.shape), "swapped": turned.reshape(found.which.shape)}


def kept_by(found: Budgeted, which: Any) -> float:
    """The mean share of attention that an assignment keeps."""
    return float(np.take_along_axis(found.candidates.kept, which[None], 0).mean())
