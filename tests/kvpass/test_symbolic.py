"""Proofs, evaluation and the algebra of axes, without a graph."""

import pytest
import sympy
import torch
from torch.fx import Graph
from torch.utils._sympy.functions import FloorDiv, Max

from headforce.kvpass.axes import Atom, label_dims, names, regroup
from headforce.kvpass.linear import impossible, inequality
from headforce.kvpass.recognize.mask import classify
from headforce.kvpass.symbolic import Binder, Facts, quotient

a, b, c = sympy.symbols("a b c", integer=True)
ZERO = sympy.Integer(0)


@pytest.fixture
def facts():
    guards = [a + 72 > b, sympy.Le(a - b + 144, 144), sympy.Eq(FloorDiv(c, 2) * 96, 384)]
    return Facts(guards, {a: (0, 100000), b: (0, 24598), c: (2, 9)})


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, a - b + 72),  # one guard
        (a, b),  # one guard, with a constant
        (Max(0, a - b), 0),  # both cases of a Max
        (Max(0, a - b), a),  # one case of a Max needs the range of b
        (0, Max(0, a - b) - (a - b)),
        (24 * FloorDiv(a, 24), a),
        (a - 23, 24 * FloorDiv(a, 24)),
        (FloorDiv(c, 2), 4),  # fixed by an equation
        (8, c),  # because c // 2 == 4
    ],
)
def test_proved(facts, low, high):
    assert facts.le(sympy.sympify(low), sympy.sympify(high))


@pytest.mark.parametrize(
    ("low", "high"), [(b, a), (0, a - b), (a, 24 * FloorDiv(a, 24)), (a, 24597), (a * a, 10), (c, 8), (1, a)]
)
def test_not_proved(facts, low, high):
    assert not facts.le(sympy.sympify(low), sympy.sympify(high))


def test_equal(facts):
    assert facts.equal(Max(0, a - b), ZERO)
    assert facts.equal((a + 1) * 2, 2 * a + 2)
    assert not facts.equal(a, b)
    assert not facts.equal(None, None)
    assert facts.simplify(3 * FloorDiv(c, 2) + a) == a + 12


def test_a_new_fact_answers_an_old_question(facts):
    before = facts.count
    assert not facts.le(b, a)
    assert not facts.equal(a, b)
    facts.assume(sympy.Le(b, a))
    assert facts.count > before
    assert facts.le(b, a)
    facts.assume(sympy.Le(a, b))
    assert facts.equal(a, b)


def test_integers_are_tighter_than_fractions():
    assert impossible([inequality(-1, {"x": 2}), inequality(1, {"x": -2})])  # 2x = 1
    assert not impossible([inequality(-2, {"x": 2}), inequality(2, {"x": -2})])
    assert not impossible([inequality(0, {"x": 1, "y": -1}), inequality(5, {"y": 1})])
    assert impossible(
        [inequality(-1, {"x": 1, "y": -1}), inequality(-1, {"y": 1, "z": -1}), inequality(1, {"z": 1, "x": -1})]
    )


def test_quotient():
    assert quotient(sympy.Integer(12), sympy.Integer(4)) == 3
    assert quotient(sympy.Integer(12), sympy.Integer(5)) is None
    assert quotient(6 * a * b, 2 * a) == 3 * b
    assert quotient(a, sympy.Integer(2)) is None


def test_evaluate_with_the_arguments_of_a_call():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env, graph = ShapeEnv(), Graph()
    symbol = env.create_unbacked_symint()
    first, second = graph.placeholder("tensor"), graph.placeholder("start")
    first.meta["example_value"], second.meta["example_value"] = torch.zeros(2, 3), symbol
    binder, s = Binder([first, second]), symbol.node.expr
    args = (torch.zeros(2, 3), 50)
    assert binder.evaluate(sympy.Integer(7), args) == 7
    assert binder.evaluate(Max(0, s - 60) + FloorDiv(s, 24) + sympy.Min(s, 9), args) == 0 + 2 + 9
    assert binder.compile([s, s - 51, FloorDiv(s - 51, 24)])(args) == (50, -1, -1)
    with pytest.raises(KeyError):
        binder.evaluate(a, args)


def sizes(*values):
    return tuple(sympy.Integer(v) for v in values)


def test_regroup_splits_and_merges():
    facts = Facts()
    axes = label_dims(("batch", "seq", "head", "dim"), sizes(1, 24, 4, 12))
    merged = regroup(axes, sizes(24, 48), facts)
    assert merged == ((Atom("seq", *sizes(24)),), (Atom("head", *sizes(4)), Atom("dim", *sizes(12))))
    assert regroup(merged, sizes(1, 24, 4, 12), facts) == axes
    frames = regroup(axes, sizes(2, 3, 4, 4, 12), facts)
    assert frames[:3] == ((Atom("seq", *sizes(2, 12)),), (Atom("seq", *sizes(3, 4)),), (Atom("seq", *sizes(4, 1)),))
    assert regroup(frames, sizes(1, 24, 4, 12), facts) == axes
    assert regroup(axes, sizes(36, 32), facts) is None
    assert names(axes, ("batch", "head", "seq", "dim")) == ("batch", "seq", "head", "dim")
    assert names(merged, ("batch", "head", "seq", "dim")) is None


def test_masks_are_classified_by_their_values():
    ones = torch.ones(4, 6, dtype=torch.bool)
    block = torch.arange(6)[None] < 2 + (torch.arange(4)[:, None] // 2 + 1) * 2
    assert classify(ones).kind == "all_true"
    assert classify(torch.zeros(2, 1, 4, 6)).kind == "all_true"
    assert classify(ones.tril(2)).kind == "causal"
    assert classify(torch.zeros(4, 6).masked_fill(~ones.tril(2), -torch.inf)).kind == "causal"
    assert (classify(block).kind, classify(block).block) == ("block_causal", 2)
    assert classify(ones.tril(0)) is None
    assert classify(torch.full((4, 6), 0.5)) is None
    assert classify(torch.stack([ones, ones.tril(2)])) is None
