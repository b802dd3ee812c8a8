"""Policies within a budget: exact, and of the bytes that they say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce import HeadforceError
from headforce.policy import Policy, oracle, parse_rule
from headforce.profile.budget import candidates, check_rules, within
from headforce.profile.knapsack import assign
from headforce.profile.report import budget_controls, kept_by

from .made import passed, profile, random_video


@given(st.integers(1, 5), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 20), st.integers(0, 99))
def test_the_assignment_is_the_best_of_all(heads, costs, spare, seed):
    rng = np.random.default_rng(seed)
    gains = rng.integers(0, 4, (heads, len(costs))) / 2 if seed % 2 else rng.random((heads, len(costs)))
    budget = heads * min(costs) + spare
    upto = budget + heads * max(costs)
    which, best = assign(gains, np.array(costs), budget, upto)
    assert (which == assign(gains, np.array(costs), budget)[0]).all()
    every = [
        (sum(gains[h, c] for h, c in enumerate(choice)), sum(costs[c] for c in choice))
        for choice in product(range(len(costs)), repeat=heads)
    ]
    top = max(gain for gain, cost in every if cost <= budget)
    cost = sum(costs[c] for c in which)
    assert cost <= budget
    assert np.isclose(sum(gains[h, c] for h, c in enumerate(which)), top)
    assert cost == min(cost for gain, cost in every if np.isclose(gain, top) and cost <= budget) or not seed % 2
    assert len(best) == upto + 1
    for other in range(upto + 1):
        fitting = [gain for gain, cost in every if cost <= other]
        assert np.isclose(best[other], max(fitting)) if fitting else best[other] == -np.inf


def test_what_a_rule_keeps_is_the_attention_on_what_the_oracle_says_it_reads():
    made = profile(random_video(), random_video(seed=1))
    found = candidates(made, ("drop()", "sink(1) | window(2)", "stride(6, phase=0, last=3) | window(1)"), chunks=2)
    assert found.names[-1] == "native"
    np.testing.assert_allclose(found.kept[-1], 1, rtol=1e-5)
    for name, kept in zip(found.names[:-1], found.kept, strict=False):
        sums = []
        for video in made.videos:
            for chunk in (7, 8):
                one = video.at(chunk)
                read = oracle.read(parse_rule(name), None, one.chunk, one.chunk.start)
                frames = {*read, *one.chunk.queries}
                picked = [i for i, frame in enumerate(one.keys) if frame in frames]
                sums.append(one.mass[:, :, 0, picked].sum(-1))
        np.testing.assert_allclose(kept, np.mean(sums, axis=0), rtol=1e-5)
    assert found.pages.tolist() == [3, 3 + 3, 3 + 4, 21]


def test_each_head_gets_what_it_looks_at():
    """Four heads of one kind each: with room for exactly their rules, these are found and nothing is lost."""
    past = 18
    kinds = {"drop()": [], "window(1)": [17], "window(6)": range(12, 18), "native": range(18)}
    mass = np.zeros((1, 4, past + 3))
    for head, frames in enumerate(kinds.values()):
        mass[0, head, [*frames, 18, 19, 20]] = 1
    made = profile([passed(mass, chunk=10)])
    found = candidates(made, tuple(kinds)[:-1])
    budgeted = within(found, (3 + 4 + 9 + 21) / (4 * 21))
    assert budgeted.which.tolist() == [[0, 1, 2, 3]]
    assert budgeted.kept == pytest.approx(1.0)
    assert budgeted.bytes == 37 * 1000
    assert budgeted.pages == 37
    bound = budgeted.policy.bind(layers=1, heads=4)
    assert [rule.text for rule in bound.rules[0]] == ["drop()", "window(1)", "window(6)", "span(21)"]
    assert Policy.loads(budgeted.policy.dumps()) == budgeted.policy
    for which in budget_controls(budgeted).values():
        assert sorted(which.ravel()) == [0, 1, 2, 3]
    assert kept_by(budgeted, budget_controls(budgeted)["swapped"]) < 0.8
    tighter = within(found, 0.35)
    assert tighter.pages <= 0.35 * 84
    assert tighter.kept < 1


def test_what_is_refused():
    made = profile(random_video())
    with pytest.raises(HeadforceError, match=r"HF-BUDGET.*at least"):
        within(candidates(made, ("window(9)",)), 0.35)
    for rule in ("episodic(2)", 'stride(6, phase="query", last=2)'):
        with pytest.raises(HeadforceError, match="HF-BUDGET"):
            candidates(made, (rule,))
    with pytest.raises(HeadforceError, match="HF-BUDGET"):
        within(candidates(made), 0)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("stride(6)", r"HF-UNBOUNDED\] at stride\(6\): .*Bound the rule, for example with last="),
        (
            "native() | sink(1)",
            r"HF-NATIVE\] at native\(\) \| sink\(1\): .*is among the candidates without being named",
        ),
    ],
)
def test_candidates_are_refused_without_a_profile(rule, says):
    with pytest.raises(HeadforceError, match=says):
        check_rules(("window(2)", rule))
