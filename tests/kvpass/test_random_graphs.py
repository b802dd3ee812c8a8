"""Random attention layers: those that are supported are rewritten and equal eager, all others are refused by name."""

import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from headforce.errors import CATALOGUE
from headforce.testing import graphs, unsupported, zoo
from headforce.testing.graphs import Recipe, check, check_owned, random_recipe, recipes

COUNT = int(os.environ.get("HEADFORCE_GRAPHS", "40"))
"""Layers to try; `python -m headforce.testing.graphs --count 1000` does the same at length."""


@pytest.mark.slow
def test_random_graphs():
    outcomes = []

    @settings(
        max_examples=COUNT,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(recipes())
    def try_one(recipe):
        outcomes.append(check(recipe))

    try_one()
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n".join(f"{o.wrong}: {o.recipe}" for o in wrong)
    labels = Counter(outcome.recipe.code for outcome in outcomes)
    # How many are drawn varies with hypothesis; `test_every_part_is_drawn` has the shares.
    assert labels[None] >= len(outcomes) / 4, "enough layers are of a form that is supported"
    assert len(labels) >= 4, "and some are refused, for several reasons"


@pytest.mark.slow
def test_random_graphs_are_owned():
    source = random.Random(5)
    drawn = [r for r in (random_recipe(source) for _ in range(60)) if r.ownable]
    wrong = [outcome for outcome in map(check_owned, drawn[:6]) if outcome.wrong]
    assert not wrong, "\n".join(f"{o.wrong}: {o.recipe}" for o in wrong)


def test_a_check_notices_what_is_not_as_its_label_says():
    """The check itself: a layer with a fault is not as a layer without is labelled, and the other way round."""
    source = random.Random(3)
    recipe = next(r for r in iter(lambda: random_recipe(source), None) if r.fault == "read_short")

    class Mislabelled(Recipe):
        code = None

    assert "refused ['HF-CACHE-RANGE']" in check(Mislabelled(**vars(recipe))).wrong
    Mislabelled.code = "HF-MASK"
    whole = next(r for r in iter(lambda: random_recipe(source), None) if r.fault is None)
    assert "1 launches" in check(Mislabelled(**vars(whole))).wrong


def test_every_part_is_drawn():
    source = random.Random(0)
    drawn = [random_recipe(source) for _ in range(4000)]
    assert {r.fault for r in drawn} == {None, *unsupported.FAULTS}
    assert {r.protocol for r in drawn} == set(zoo.PROTOCOLS)
    assert {r.rope for r in drawn} == set(zoo.ROPES) - {"none"}
    assert {name for r in drawn for name in r.same} == set(graphs.SAME)
    assert {r.product for r in drawn if r.fault is None} == set(graphs.PRODUCTS)
    assert sum(r.fault is None for r in drawn) > len(drawn) / 2


@pytest.mark.parametrize("fault", unsupported.FAULTS)
def test_labels_are_codes(fault):
    assert unsupported.FAULTS[fault] in CATALOGUE
