"""The registry of scores: by what a selection compares the segments of frames.

A score is one function in one file of `scores/`, or of a package that names its module in the entry point group
`headforce.scores`. Its plain torch form is its meaning.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TypeVar

from torch import Tensor

from ...errors import HeadforceError, nearest

ENTRY_POINTS = "headforce.scores"


@dataclass(frozen=True)
class Segments:
    """The candidates of some groups of heads, each group deciding for itself.

    Attributes:
        keys: [G, H, m, R, D]: for each of G groups and its H heads the m segments of R rows; each key as the score
            asked for it: as it lies in its page, or as it was before RoPE.
        following: the same segments of the next frame, or None for a score that did not ask for them.
        newest: [G, H, m, R, D]: the same segments of the newest committed frame, or None.
        queries: [G, H, D]: the mean query of the last pass, as attention saw it, or None.
    """

    keys: Tensor
    following: Tensor | None
    newest: Tensor | None
    queries: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """A registered score.

    Attributes:
        function: Segments -> [G, m], one number for every segment. best: "lowest" or "highest".
        raw: the keys are to be as they were before RoPE. following, newest, queries: what else the score looks at.
    """

    name: str
    function: Callable[[Segments], Tensor]
    best: str
    raw: bool
    following: bool
    newest: bool
    queries: bool


_SCORES: dict[str, Score] = {}
_F = TypeVar("_F", bound=Callable[[Segments], Tensor])


def score(
    name: str,
    *,
    best: str,
    raw: bool = False,
    following: bool = False,
    newest: bool = False,
    queries: bool = False,
) -> Callable[[_F], _F]:
    """Decorator: registers a score, see `Score`. Segments are kept by the `lowest` or the `highest` numbers."""

    def register(function: _F) -> _F:
        _SCORES[name] = Score(name, function, best, raw, following, newest, queries)
        return function

    return register


def load_scores() -> dict[str, Score]:
    """All scores by name, those of installed plugins included."""
    from . import scores

    for module in pkgutil.iter_modules(scores.__path__):
        importlib.import_module(f"{scores.__name__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_SCORES.items()))


def find_score(name: str) -> Score:
    """The score called `name`; HF-SCORE with the nearest valid name if there is none."""
    if name not in _SCORES:
        known = load_scores()
        if name not in known:
            raise HeadforceError(
                "HF-SCORE", found=f"score {name!r}{nearest(name, known)}", needed="one of " + ", ".join(known)
            )
    return _SCORES[name]
