"""How much labels are worth: agreement of methods, stability, and the controls that a sceptic asks for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..presets import Labels
from .classify import classify_heads
from .measured import Profile, Video
from .methods import Method


def contingency(one: Labels, other: Labels) -> dict[str, dict[str, int]]:
    """How many heads are of each class of `one` and each of `other`."""
    pairs = list(zip(_flat(one), _flat(other), strict=True))
    return {a: {b: pairs.count((a, b)) for b in other.classes} for a in one.classes}


def rand_index(one: Labels, other: Labels) -> float:
    """The adjusted Rand index of two ways to group heads: 1 for the same groups, whatever their names; 0 as by chance.

    Two ways that both put every head into one group are the same. (Hubert and Arabie, Comparing partitions, 1985.)
    """
    table = np.array([list(row.values()) for row in contingency(one, other).values()], dtype=np.float64)
    both, rows, columns, total = map(_pairs, (table, table.sum(1), table.sum(0), table.sum()))
    chance = rows * columns / total if total else 0.0
    most = (rows + columns) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def _pairs(counts: npt.ArrayLike) -> float:
    """How many pairs of heads groups of these sizes have."""
    sizes = np.asarray(counts, dtype=np.float64)
    return float((sizes * (sizes - 1) / 2).sum())


def same(one: Labels, other: Labels) -> float:
    """The share of heads with the same label in both."""
    pairs = list(zip(_flat(one), _flat(other), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def stability(
    profile: Profile, method: str | Method, *, chunk: int = -1, step: int = -1, **constants: Any
) -> dict[str, float]:
    """The mean share of heads with the same label in two measurements that differ in one thing alone.

    Keys: every part of the videos' names that differs between some of them, such as "prompt" and "seed", and "chunk",
    where a video has several that the method can judge. What nothing can be said about is left out.
    """
    of_video = [found.labels for found in classify_heads(profile, method, chunk=chunk, step=step, **constants).videos]
    shares: dict[str, list[float]] = {}
    for (a, one), (b, other) in combinations(zip(profile.videos, of_video, strict=True), 2):
        differing = [key for key in a.name if a.name[key] != b.name.get(key)]
        if len(differing) == 1:
            shares.setdefault(differing[0], []).append(same(one, other))
    for video in profile.videos:
        labels = _by_chunk(profile, video, method, step, constants)
        shares.setdefault("chunk", []).extend(same(one, other) for one, other in combinations(labels, 2))
    return {key: float(np.mean(values)) for key, values in shares.items() if values}


def _by_chunk(
    profile: Profile, video: Video, method: str | Method, step: int, constants: Mapping[str, Any]
) -> list[Labels]:
    """The labels of every chunk of a video that the method can judge."""
    alone, labels = Profile(profile.model, profile.sample, (video,)), []
    for chunk in video.chunks:
        try:
            labels.append(classify_heads(alone, method, chunk=chunk, step=step, **constants).labels)
        except HeadforceError as error:
            if error.code != "HF-PROFILE-DATA":
                raise
    return labels


def shuffled(labels: Labels, seed: int = 0) -> Labels:
    """A control: as many heads of each class, at random places of the model."""
    names = list(_flat(labels))
    random.Random(seed).shuffle(names)
    return _shaped(names, labels)


def swapped(labels: Labels, score: npt.NDArray[np.floating[Any]]) -> Labels:
    """A control: as many heads of each class, and the ranking of the heads upside down.

    The head with the highest score gets the label of that with the lowest, and so on. `score`: [layers, heads].
    """
    names, order = _flat(labels), np.argsort(score, axis=None, kind="stable")
    turned = [""] * len(names)
    for head, opposite in zip(order, order[::-1], strict=True):
        turned[head] = names[opposite]
    return _shaped(turned, labels)


def _flat(labels: Labels) -> tuple[str, ...]:
    return tuple(name for layer in labels.layers for name in layer)


def _shaped(names: list[str], like: Labels) -> Labels:
    width = like.heads
    return Labels(tuple(tuple(names[i : i + width]) for i in range(0, len(names), width)))
