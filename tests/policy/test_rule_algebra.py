"""The laws of rules: on frame sets, with position maps, and what equality, hash and digest make of them."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce.policy import Chunk, parse_rule
from headforce.policy.ops.drop import Drop
from headforce.policy.ops.native import Native
from headforce.testing.strategies import rules, schedules

plain = rules(remapped=False, most=3)
mapped = rules(most=3).filter(lambda rule: not rule.contiguous)
NOTHING = Drop().as_rule()


def frames(rule, schedule):
    """What every query frame of every chunk reads."""
    return [rule.frames(chunk, query) for chunk in schedule for query in chunk.queries]


def positions(rule, schedule):
    """As `frames`, with the position of every frame."""
    return [
        {f: p for item in rule.read(chunk, query) for f, p in zip(item.frames, item.positions, strict=True)}
        for chunk in schedule
        for query in chunk.queries
    ]


def same(a, b):
    return a == b and hash(a) == hash(b) and a.digest == b.digest


# --- on frame sets ------------------------------------------------------------------------------------------------


@given(mapped, mapped, schedules())
def test_commutative_on_frames(a, b, schedule):
    assert frames(a | b, schedule) == frames(b | a, schedule)
    assert frames(a & b, schedule) == frames(b & a, schedule)


@given(mapped, mapped, schedules())
def test_absorption_on_frames(a, b, schedule):
    assert frames(a | a & b, schedule) == frames(a, schedule)
    assert frames(a & (a | b), schedule) == frames(a, schedule)


@given(mapped, mapped, mapped, schedules(chunks=6))
def test_distribution_on_frames(a, b, c, schedule):
    assert frames(a & (b | c), schedule) == frames(a & b | a & c, schedule)
    assert frames(a | b & c, schedule) == frames((a | b) & (a | c), schedule)


@given(mapped, schedules())
def test_the_empty_rule(a, schedule):
    assert same(a | NOTHING, a)
    assert same(NOTHING | a, a)
    assert same(a & NOTHING, NOTHING)
    assert positions(a | NOTHING, schedule) == positions(a, schedule)


# --- with positions -----------------------------------------------------------------------------------------------


@given(mapped, mapped, mapped, schedules(chunks=6))
def test_associative(a, b, c, schedule):
    assert same((a | b) | c, a | (b | c))
    assert same((a & b) & c, a & (b & c))
    assert positions((a | b) | c, schedule) == positions(a | (b | c), schedule)
    assert positions((a & b) & c, schedule) == positions(a & (b & c), schedule)


@given(mapped, mapped, schedules())
def test_idempotent(a, b, schedule):
    assert same(a | a, a)
    assert same(a & a, a)
    assert same(a | b | a, a | b)
    assert same(a & b & a, a & b)
    assert positions(a | a, schedule) == positions(a, schedule)
    assert positions(a & a, schedule) == positions(a, schedule)


@given(mapped, mapped, schedules())
def test_the_leftmost_operand_gives_the_position(a, b, schedule):
    for both, of_a, of_b in zip(*(positions(rule, schedule) for rule in (a | b, a, b)), strict=True):
        assert both == of_b | of_a
    for both, of_a, of_b in zip(*(positions(rule, schedule) for rule in (a & b, a, b)), strict=True):
        assert both == {f: p for f, p in of_a.items() if f in of_b}


# --- equality -----------------------------------------------------------------------------------------------------


@given(plain, plain)
def test_operands_change_places_when_the_maps_agree(a, b):
    assert same(a | b, b | a)
    assert same(a & b, b & a)
    assert same((a | b) @ "contiguous", (b | a) @ "contiguous")


@given(rules(most=3), rules(most=3), schedules())
def test_equal_rules_mean_the_same(a, b, schedule):
    if a == b:
        assert positions(a, schedule) == positions(b, schedule)
    if not a.contiguous and not b.contiguous and a | b == b | a:
        assert positions(a | b, schedule) == positions(b | a, schedule)
    if not a.contiguous and not b.contiguous and a & b == b & a:
        assert positions(a & b, schedule) == positions(b & a, schedule)


@given(mapped, st.randoms(use_true_random=False), schedules())
def test_a_shuffled_union_that_is_equal_means_the_same(rule, source, schedule):
    parts = [part.as_rule() for part in map(_rule_of, rule.terms)]
    source.shuffle(parts)
    first, second = _union(map(_rule_of, rule.terms)), _union(parts)
    if first == second:
        assert same(first, second)
        assert positions(first, schedule) == positions(second, schedule)


def _rule_of(term):
    return parse_rule(str(term))


def _union(parts):
    result, *rest = parts
    for part in rest:
        result = result | part
    return result


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("sink(1)@collapse(21) | window(1)", "window(1) | sink(1)@collapse(21)"),
        ("sink(1)@collapse(21) & window(1)", "window(1) & sink(1)@collapse(21)"),
        ("sink(1)@collapse(21)", "sink(1)@collapse(20)"),
        ("sink(1)@collapse(21)", "sink(1)@clamp(21)"),
        ("sink(1)", "(sink(1))@contiguous"),
        ("sink(1)", "sink(2)"),
        ('stride(6, phase="query")', "stride(6, phase=0)"),
        ("episodic(2)", "episodic(2, evict=least_novel)"),
    ],
)
def test_different_rules(a, b):
    assert parse_rule(a) != parse_rule(b)
    assert parse_rule(a).digest != parse_rule(b).digest


def test_order_counts_only_between_maps_that_differ():
    # window and span keep their order before and behind the sink, whose map is another.
    a = parse_rule("sink(1)@collapse(3) | window(4) | span(5)")
    b = parse_rule("sink(1)@collapse(3) | span(5) | window(4)")
    c = parse_rule("window(4) | sink(1)@collapse(3) | span(5)")
    assert same(a, b)
    assert a != c
    assert len({a, b, c}) == 2


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("drop()@collapse(3)", "drop()"),
        ("drop() | drop()", "drop()"),
        ("drop() | sink(1)", "sink(1)"),
        ("window(2) | (sink(1) | window(2))", "sink(1) | window(2)"),
        ("sink(1) & sink(1)", "sink(1)"),
        ("sink(1) & drop() & window(1)", "drop()"),
        ("window(2) & sink(1)", "sink(1) & window(2)"),
        ("window(2)@collapse(3) & span(4) & sink(1)", "window(2)@collapse(3) & sink(1) & span(4)"),
        ("window(2)@collapse(3) & sink(1)@collapse(3)", "sink(1)@collapse(3) & window(2)@collapse(3)"),
        ("select(1, segments=2, source=evicted(a)) & older(2) | window(1) as a",) * 2,
        ("select(1, segments=1, source=evicted(a)) | window(1) as a",) * 2,
        ("sink(2) & (window(3) | span(4))", "sink(2) & (span(4) | window(3))"),
    ],
)
def test_the_normal_form(text, normal):
    assert str(parse_rule(text).normal) == normal


def test_equal_numbers_have_one_digest():
    assert same(parse_rule("episodic(2, write=novel(1))"), parse_rule("episodic(2, write=novel(1.0))"))
    assert same(parse_rule("episodic(2, write=novel(0))"), parse_rule("episodic(2, write=novel(-0.0))"))


def test_what_native_reads_is_part_of_a_bound_rule():
    some, same_set, other = (
        Native(parse_rule(text)).as_rule() for text in ("sink(1) | span(9)", "span(9) | sink(1)", "span(9)")
    )
    assert same(some, same_set)
    assert some != other
    assert some.digest != other.digest
    assert str(some) == "native()"


def test_a_rule_is_not_its_text():
    assert parse_rule("sink(1)") != "sink(1)"
    assert repr(parse_rule("sink(1)")) == "Rule('sink(1)')"


def test_hash_and_digest_in_another_process():
    """A pickled rule must not bring along its hash, which differs between processes; digests must not differ."""
    rule = parse_rule("window(4) | sink(1)")
    assert hash(rule)
    code = (
        "import pickle, sys; from headforce.policy import parse_rule\n"
        "rule = pickle.loads(sys.stdin.buffer.read()); mine = parse_rule('sink(1) | window(4)')\n"
        "assert rule == mine and hash(rule) == hash(mine); print(rule.digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(rule), capture_output=True, check=True)
    assert done.stdout.decode().strip() == rule.digest


def test_contiguous_positions_leave_no_gap():
    rule = parse_rule("(sink(2) | window(1))@contiguous")
    assert positions(rule, [Chunk(3, 9, 1)]) == [{0: 6, 1: 7, 8: 8}]
