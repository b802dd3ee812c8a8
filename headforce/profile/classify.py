"""Which heads are what, from all videos of a profile: one label for each video, then the majority."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..presets import Labels
from .measured import Profile
from .methods import Found, Method, find_method


@dataclass(frozen=True, eq=False)
class Classified:
    """The heads of a model under one method.

    Attributes:
        labels: the class that most videos give a head. votes: [layers, heads], the share of videos that do.
        videos: what each video gives. score: [layers, heads], the mean of the scores of all videos.
    """

    method: Method
    labels: Labels
    votes: npt.NDArray[np.floating[Any]]
    videos: tuple[Found, ...]
    score: npt.NDArray[np.floating[Any]]


def classify_heads(
    profile: Profile, method: str | Method, *, chunk: int = -1, step: int = -1, **constants: Any
) -> Classified:
    """Classifies the heads in one pass of every video, by default the last pass of the last chunk.

    Args:
        method: its name. chunk, step: the pass, see `Video.at`. constants: of the method.

    Raises HF-PROFILE-METHOD for a method or a constant that does not exist, HF-PROFILE-DATA if videos lack the pass, or
    the pass what the method needs.
    """
    found_method = method if isinstance(method, Method) else find_method(method)
    found = tuple(found_method(passed, **constants) for passed in profile.passes(chunk, step))
    labels, votes = vote([each.labels for each in found])
    return Classified(found_method, labels, votes, found, np.mean([each.score for each in found], axis=0))


def vote(labels: Sequence[Labels]) -> tuple[Labels, npt.NDArray[np.floating[Any]]]:
    """The class that most give a head, the earliest of equals, and [layers, heads] the share that does."""
    layers, votes = [], []
    for of_layer in zip(*(each.layers for each in labels), strict=True):
        won = [Counter(of_head).most_common(1)[0] for of_head in zip(*of_layer, strict=True)]
        layers.append(tuple(name for name, _ in won))
        votes.append([count / len(labels) for _, count in won])
    return Labels(tuple(layers)), np.array(votes)
