"""Joint assignment of memory to heads, against trying every assignment there is."""

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce.errors import HeadforceError
from headforce.policy.assignment import assign_kinds, normalised

from .test_no_torch import run

whole = st.integers(0, 4)
few = st.sampled_from([0.0, 0.1, 0.2, 0.1 + 0.2, 0.3, 1.0])
"""Numbers that are often equal, and some whose sums are rounded."""
real = st.floats(0, 1e6)


@st.composite
def models(draw, numbers, most=7):
    """Gains of up to `most` heads, and how many of them go without."""
    width = draw(st.integers(1, 3))
    gains = draw(st.lists(st.lists(numbers, min_size=width, max_size=width), max_size=most))
    return gains, draw(st.integers(0, len(gains)))


def every_assignment(gains, dummies):
    heads = range(len(gains))
    for without in combinations(heads, dummies):
        for kinds in product(*[[None] if head in without else range(len(gains[head])) for head in heads]):
            yield without, kinds


def total(gains, kinds):
    """The exact sum, rounded once: it keeps the order of exact sums."""
    return math.fsum(row[kind] for row, kind in zip(gains, kinds, strict=True) if kind is not None)


@given(models(whole) | models(few) | models(real))
def test_no_assignment_gains_more(model):
    gains, dummies = model
    best = max(total(gains, kinds) for _, kinds in every_assignment(gains, dummies))
    assert total(gains, assign_kinds(gains, dummies)) == best


@given(models(whole, most=6))
def test_of_the_best_it_is_the_first(model):
    """First by the heads that go without, then by the kinds of the others."""
    gains, dummies = model
    best = max(every_assignment(gains, dummies), key=lambda found: total(gains, found[1]))
    assert assign_kinds(gains, dummies) == list(best[1])


@given(models(whole | real, most=40))
def test_so_many_go_without(model):
    gains, dummies = model
    kinds = assign_kinds(gains, dummies)
    assert kinds.count(None) == dummies
    assert all(kind is None or gains[head][kind] == max(gains[head]) for head, kind in enumerate(kinds))


@given(st.data())
def test_the_order_of_heads_means_nothing(data):
    """Apart from ties: here no two heads have the same to lose."""
    gains = data.draw(st.lists(st.tuples(real, real), max_size=20, unique_by=max))
    dummies = data.draw(st.integers(0, len(gains)))
    order = data.draw(st.permutations(range(len(gains))))
    kinds = assign_kinds(gains, dummies)
    assert assign_kinds([gains[head] for head in order], dummies) == [kinds[head] for head in order]


def test_a_worked_example():
    #        sink  neighbor
    gains = [(0.4, 0.1), (0.1, 0.1), (0.0, 0.2), (0.1, 0.0), (0.2, 0.3)]
    assert assign_kinds(gains, 0) == [0, 0, 1, 0, 1]
    assert assign_kinds(gains, 1) == [0, None, 1, 0, 1]
    assert assign_kinds(gains, 2) == [0, None, 1, None, 1]
    assert assign_kinds(gains, 5) == [None] * 5
    assert assign_kinds([], 0) == []


# --- normalising ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(real, real), max_size=20))
def test_columns_sum_to_one_or_stay_zero(heads):
    first, middle = [a for a, _ in heads], [b for _, b in heads]
    gains = normalised(first, middle)
    assert len(gains) == len(heads)
    for column, its_gains in ((first, [a for a, _ in gains]), (middle, [b for _, b in gains])):
        assert math.fsum(its_gains) == pytest.approx(1.0 if any(column) else 0.0)
        for a, b in zip(column, its_gains, strict=True):
            assert b == pytest.approx(a / (sum(column) or 1))


def test_a_small_share_can_be_a_large_part():
    """The last head has little on its middle frames, but the others have nothing there."""
    gains = normalised([0.5, 0.25, 0.25], [0.0, 0.0, 0.1])
    assert gains == [(0.5, 0.0), (0.25, 0.0), (0.25, 1.0)]
    assert assign_kinds(gains, 1) == [0, None, 1]
    assert normalised([0.0, 0.0], [1.0, 3.0]) == [(0.0, 0.25), (0.0, 0.75)]


# --- refusals ---------------------------------------------------------------------------------------------------

CODE = "HF-CLASSIFY"


@pytest.mark.parametrize(
    ("gains", "dummies", "found"),
    [
        ([(1.0, 2.0)], -1, "-1 heads"),
        ([(1.0, 2.0)], 2, "2 heads"),
        ([], 1, "1 heads"),
        ([(1.0, 2.0), (1.0, math.nan)], 0, "nan"),
        ([(1.0, 2.0), (-0.5, 1.0)], 1, "-0.5"),
        ([(1.0, math.inf)], 0, "inf"),
        ([(1.0, 2.0), (1.0,)], 0, "1 gains, and 2"),
        ([(), ()], 0, "0 gains"),
    ],
)
def test_what_is_no_assignment_is_refused(gains, dummies, found):
    with pytest.raises(HeadforceError) as refusal:
        assign_kinds(gains, dummies)
    assert refusal.value.code == CODE
    assert refusal.value.found.startswith(found)


@pytest.mark.parametrize("columns", [([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [-1.0]), ([math.inf], [1.0])])
def test_what_is_no_probability_is_not_normalised(columns):
    with pytest.raises(HeadforceError) as refusal:
        normalised(*columns)
    assert refusal.value.code == CODE


def test_no_torch_is_needed():
    code = "from headforce.policy.assignment import assign_kinds\nprint(assign_kinds([(1, 2), (0, 1), (3, 0)], 1))"
    assert run(code).strip() == "[1, None, 0]"
