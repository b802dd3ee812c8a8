"""Classes of heads that are decided while a stream runs: counts, assignment, and the policies around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce.policy import Chunk, Classify, Policy, Warmup, parse_rule
from headforce.policy.switch import Flush, KeepAll, Recache

CLASSES = {"sink": parse_rule("sink(1)"), "neighbor": parse_rule("window(3)"), "dummy": parse_rule("drop()")}
WARM = Warmup(2, parse_rule("window(3)"))


def policy(**changes):
    return Policy(**{"classes": CLASSES, "warmup": WARM, "classify": Classify(1), **changes})


def test_defaults_are_those_of_the_paper():
    its = Classify(1)
    assert its == Classify(1, 0.5, "sink", "neighbor", "dummy", first_frames=1, queries=0.25, seed=0)
    assert its.classes == ("sink", "neighbor", "dummy")


@pytest.mark.parametrize(
    ("dummies", "heads", "count"), [(0.5, 360, 180), (0.0, 5, 0), (1.0, 5, 5), (0.3, 5, 2), (1, 5, 1), (0, 5, 0)]
)
def test_a_share_or_a_number(dummies, heads, count):
    its = Classify(1, dummies=dummies)
    assert its.is_share == isinstance(dummies, float)
    assert its.count(heads) == count


def test_numbers_at_the_edge_are_taken():
    its = Classify(2**63 - 1, dummies=2**63, first_frames=1, queries=1, seed=0)
    assert (its.chunk, its.dummies, its.queries) == (2**63 - 1, 2**63, 1)


def test_each_head_is_what_it_attends_to_more_but_for_those_with_the_least():
    first = [[0.9, 0.1, 0.4], [0.2, 0.3, 0.1]]
    middle = [[0.1, 0.8, 0.1], [0.1, 0.9, 0.1]]  # sums 2.0 and 2.1: shares 0.45 .05 .2 | .1 .15 .05; .05 .38 .05 | ...
    assert Classify(1, dummies=2).assign(first, middle) == [
        ["sink", "neighbor", "sink"],
        ["dummy", "neighbor", "dummy"],
    ]
    assert Classify(1, dummies=0).assign(first, middle)[1] == ["sink", "neighbor", "sink"]


def test_each_kind_is_compared_with_its_own_sum():
    """The second head gives its middle frames less than its first, but more of what all heads give the middle."""
    assert Classify(1, dummies=0).assign([[0.6, 0.4]], [[0.0, 0.1]]) == [["sink", "neighbor"]]


def test_no_attention_at_all_is_no_division_by_zero():
    assert Classify(1, dummies=1).assign([[0.0, 0.0]], [[0.0, 0.5]]) == [["dummy", "neighbor"]]


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1))
def test_a_guess_has_as_many_dummies_spread_evenly(layers, heads, share):
    its = Classify(1, dummies=share)
    names = its.guess(layers, heads)
    assert [len(row) for row in names] == [heads] * layers
    assert {name for row in names for name in row} <= {"dummy", "neighbor"}
    in_order = [name == "dummy" for row in names for name in row]
    assert sum(in_order) == its.count(layers * heads)
    for stop in range(len(in_order) + 1):  # any prefix has its part, rounded down
        assert sum(in_order[:stop]) == stop * its.count(layers * heads) // (layers * heads)


def test_once_classified_every_head_has_its_class():
    names = [["sink", "dummy"], ["neighbor", "neighbor"]]
    decided = policy().classified(names)
    assert decided.classify is None
    assert [[decided.class_of(layer, head) for head in (0, 1)] for layer in (0, 1)] == names
    assert decided.heads == {0: {"sink": (0,), "dummy": (1,)}, 1: {"neighbor": (0, 1)}}
    assert (decided.classes, decided.warmup) == (policy().classes, WARM)


def test_before_it_every_head_holds_what_any_class_may_read():
    before = policy().undecided()
    assert (before.classify, before.default, before.warmup) == (None, "undecided", WARM)
    rule = before.rule_of(0, 0)
    assert set(rule.frames(Chunk(3, 9, 3), 9)) == {0, 6, 7, 8}
    assert before.on_switch == {"undecided": KeepAll()}


def test_positions_of_classes_do_not_matter_before_it():
    moved = {**CLASSES, "sink": parse_rule("(sink(1) | window(2))@contiguous")}
    assert not policy(classes=moved).undecided().rule_of(0, 0).contiguous


def test_classes_that_read_nothing_hold_nothing():
    silent = {"sink": parse_rule("mute()"), "neighbor": parse_rule("mute()"), "dummy": parse_rule("mute()")}
    assert policy(classes=silent).undecided().rule_of(0, 0) == parse_rule("mute()")
    mixed = {**silent, "neighbor": parse_rule("window(2)")}
    assert policy(classes=mixed).undecided().rule_of(0, 0) == parse_rule("window(2)")


def test_a_switch_before_it_is_answered_if_all_classes_answer_alike():
    alike = dict.fromkeys(CLASSES, Flush(2))
    assert policy(on_switch=alike).undecided().on_switch == {"undecided": Flush(2)}
    assert policy(on_switch=alike).answers_alike
    for different in ({"sink": Flush(2)}, {**alike, "dummy": Recache(2)}):
        assert policy(on_switch=different).undecided().on_switch == {}
        assert not policy(on_switch=different).answers_alike


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"dummies": 1}, {"dummies": 1.0}, False),
        ({"dummies": 0}, {"dummies": 0.0}, False),
        ({"dummies": 0.0}, {"dummies": -0.0}, True),
        ({"queries": 1}, {"queries": 1.0}, True),
        ({"dummies": 2}, {"dummies": 2}, True),
        ({"seed": 1}, {"seed": 2}, False),
    ],
)
def test_what_means_the_same_is_equal_and_has_one_digest(one, other, same):
    its, others = Classify(1, **one), Classify(1, **other)
    assert (its == others) == (hash(its) == hash(others)) == same
    its, others = policy(classify=its), policy(classify=others)
    assert (its == others) == (hash(its) == hash(others)) == (its.digest == others.digest) == same
    assert its != one
