"""Agreement, stability and controls."""

from __future__ import annotations

import random

import numpy as np
import pytest

from headforce.presets import Labels
from headforce.profile.compare import contingency, rand_index, same, shuffled, stability, swapped

from .made import passed, profile, random_video


def labels(*layers):
    return Labels(tuple(map(tuple, layers)))


def test_agreement_of_groups_does_not_depend_on_their_names():
    one = labels("aabb", "ccca")
    renamed = labels("xxyy", "zzzx")
    assert rand_index(one, renamed) == pytest.approx(1.0)
    assert contingency(one, renamed) == {
        "a": {"x": 3, "y": 0, "z": 0},
        "b": {"x": 0, "y": 2, "z": 0},
        "c": {"x": 0, "y": 0, "z": 3},
    }
    assert same(one, renamed) == 0
    assert rand_index(labels("aaaa"), labels("bbbb")) == 1.0
    # The example of Hubert and Arabie's index in scikit-learn's documentation.
    assert rand_index(labels([0, 0, 1, 2]), labels([0, 0, 1, 1])) == pytest.approx(0.5714285714)
    assert rand_index(labels([0, 0, 0, 0]), labels([0, 1, 2, 3])) == pytest.approx(0.0)
    rng = random.Random(0)
    chance = [rand_index(labels(rng.choices("ab", k=200)), labels(rng.choices("ab", k=200))) for _ in range(50)]
    assert abs(sum(chance) / 50) < 0.01


def test_controls_have_the_same_counts_at_other_places():
    one = labels(*(["a"] * 3 + ["b"] * 9 for _ in range(10)))
    mixed = shuffled(one, seed=3)
    assert mixed.counts() == {"b": 90, "a": 30}
    assert mixed == shuffled(one, seed=3)
    assert mixed != shuffled(one, seed=4)
    assert same(one, mixed) == pytest.approx((30 * 30 + 90 * 90) / 120**2, abs=0.15)

    score = np.arange(120.0).reshape(10, 12)
    ranked = labels(*(["a"] * 12 if layer < 3 else ["b"] * 12 for layer in range(10)))
    turned = swapped(ranked, score)
    assert turned.counts() == ranked.counts()
    assert [name for layer in turned.layers for name in layer] == ["b"] * 84 + ["a"] * 36


def test_stability_tells_prompts_seeds_and_chunks_apart():
    """Heads that change with the prompt, not with the seed, and once in a video."""

    def masses(static):
        """Static heads look at the chunk, the others at the past."""
        mass = np.zeros((1, 4, 21))
        mass[:, :static, -1] = 1
        mass[:, static:, 3] = 1
        return mass

    names = [{"prompt": p, "seed": s} for p in range(2) for s in range(2)]
    videos = [[passed(masses(2 + name["prompt"]), chunk=chunk) for chunk in (8, 9)] for name in names]
    assert stability(profile(*videos, names=names), "forcing_kv") == {"prompt": 0.75, "seed": 1.0, "chunk": 1.0}
    changing = [passed(masses(2), chunk=8), passed(masses(4), chunk=9)]
    assert stability(profile(changing), "forcing_kv") == {"chunk": 0.5}


def test_chunks_that_a_method_cannot_judge_are_left_out():
    found = stability(profile(random_video(), random_video(seed=1)), "pyramid")
    assert set(found) == {"seed", "chunk"}
    assert all(0 <= share <= 1 for share in found.values())
