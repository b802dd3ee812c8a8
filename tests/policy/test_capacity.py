"""Capacity: reached, never exceeded, the same for an endless stream, and below its expression."""

from itertools import islice

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headforce.errors import HeadforceError
from headforce.policy import Chunk, HeadMemory, Policy, Schedule, Warmup, parse_rule
from headforce.policy.memory import BUSIEST
from headforce.policy.symbolic import limit
from headforce.testing.strategies import decisions, policies, rules, schedules

NATIVE = parse_rule("sink(1) | span(7)")


def bound_policy(rule, warmup=None, horizon=None):
    policy = Policy({"a": rule}, default="a", warmup=warmup, horizon=horizon)
    return policy.bind(layers=1, heads=1, native=NATIVE)


@settings(max_examples=25)
@given(policies(stores=True), schedules(chunks=20), decisions())
def test_is_never_exceeded(policy, schedule, decide):
    bound = policy.bind(layers=3, heads=4, native=NATIVE)
    for head in bound.distinct:
        capacity = bound.capacity(head, schedule)
        memory, before = HeadMemory(head.rule), None
        for chunk in schedule:
            if before is not None:
                memory.commit(before, chunk, decide)
            held = len(head.live(chunk, memory.held)) + head.pages
            assert held <= capacity.peak
            if chunk.index >= head.warmup_chunks:
                assert held <= capacity.steady
            before = chunk


@settings(max_examples=40)
@given(policies(), schedules(chunks=20))
def test_is_reached(policy, schedule):
    bound = policy.bind(layers=3, heads=4, native=NATIVE)
    for head in bound.distinct:
        capacity = bound.capacity(head, schedule)
        held = {chunk.index: len(head.live(chunk)) for chunk in schedule}
        assert capacity.peak == max(held.values())
        assert capacity.steady == max((n for i, n in held.items() if i >= head.warmup_chunks), default=0)


def test_a_store_reaches_its_capacity():
    rule = parse_rule("window(3) as recent | episodic(4, source=evicted(recent))")
    bound, schedule = bound_policy(rule), Schedule((2,) * 9)
    memory, before, most = HeadMemory(rule), None, 0
    for chunk in schedule:
        if before is not None:
            memory.commit(before, chunk, BUSIEST)
        most, before = max(most, len(rule.live(chunk, memory.held))), chunk
    assert most == bound.capacity(bound.distinct[0], schedule).peak == 7


def test_a_store_of_chunks_still_holds_the_long_ones():
    bound = bound_policy(parse_rule("episodic(2, unit=chunk)"))
    assert bound.capacity(bound.distinct[0], Schedule((8, 1, 1, 1))).peak == 10
    assert bound.capacity(bound.distinct[0], Schedule((8, 1, 1, 1, 1, 8, 8))).peak == 16


# --- endless streams ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60)
@given(rules(stores=True, native=NATIVE), st.none() | st.tuples(st.integers(1, 3), rules(most=2)), st.integers(1, 4))
def test_an_endless_stream_needs_what_a_much_longer_one_does(rule, warmup, frames):
    assume(limit(rule, frames) is not None)
    bound = bound_policy(rule, Warmup(*warmup) if warmup else None)
    head = bound.distinct[0]
    enough = [*islice(bound.endless(head, frames), 400)]
    assume(len(enough) < 400)
    longer = [*enough]
    for _ in range(len(enough) + 60):
        longer.append(longer[-1].then(frames))
    assert bound.capacity(head, enough) == bound.capacity(head, longer)
    assert bound.room(head, Chunk(0, 0, frames)) == bound.capacity(head, longer).peak


@pytest.mark.parametrize(
    ("rule", "peak"),
    [
        ("sink(9) | window(9)", 18),
        ("episodic(30)", 30),
        ("episodic(5, unit=chunk)", 15),
        ("sink(40)", 40),
        ("drop()", 0),
    ],
)
def test_what_settles_late(rule, peak):
    bound = bound_policy(parse_rule(rule))
    assert bound.capacity(bound.distinct[0], bound.endless(bound.distinct[0], 3)).peak == peak


def test_periods_without_a_common_factor_do_not_take_for_ever():
    """Four strides repeat together after 255,000 chunks; their need is known long before."""
    rule = parse_rule(" | ".join(f"stride({p}, phase=0, last=3)" for p in (29, 31, 37, 41)))
    bound = bound_policy(rule)
    assert sum(1 for _ in islice(bound.endless(bound.distinct[0], 3), 100_000)) == 100_000
    assert bound.room(bound.distinct[0], Chunk(0, 0, 3)) == 12
    meeting = parse_rule("stride(9973, phase=0, last=1) | stride(9967, phase=1, last=1)")  # 2 from frame 9967 on
    bound = bound_policy(meeting)
    assert bound.room(bound.distinct[0], Chunk(0, 0, 3)) == 2
    far = bound_policy(parse_rule("window(50000)"))  # its bound stands for what is out of sight
    assert far.room(far.distinct[0], Chunk(0, 0, 1)) == 50000


def test_a_stream_ends_at_its_horizon():
    bound = bound_policy(parse_rule("everything()"), horizon=20)
    chunks = [*bound.endless(bound.distinct[0], 3)]
    assert chunks[-1] == Chunk(5, 15, 3)
    assert bound.capacity(bound.distinct[0], chunks).peak == 15
    with pytest.raises(HeadforceError, match="HF-HORIZON"):
        bound.capacity(bound.distinct[0], Schedule((3,) * 7))


# --- the expression -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60)
@given(rules(stores=True, native=NATIVE), schedules(chunks=12))
def test_the_expression_is_never_below_the_number(rule, schedule):
    head = (bound := bound_policy(rule, horizon=1000)).distinct[0]
    longest = 0
    for chunk in schedule:
        most = head.rule.bound(sympy.Integer(chunk.start), sympy.Integer(max(longest, chunk.frames)))
        assert most >= bound.need(head, chunk, longest)
        longest = max(longest, chunk.frames)
    ever = limit(head.rule, longest)
    assert ever is None or bound.capacity(head, schedule).peak <= ever + head.pages


@given(rules(stores=True, native=NATIVE), st.integers(0, 9), st.integers(1, 5))
def test_no_operator_claims_more_than_there_is(rule, committed, frames):
    s, n = sympy.Integer(committed), sympy.Integer(frames)
    for term in bound_policy(rule, horizon=1000).distinct[0].rule.terms:
        assert 0 <= term.op.bound(s, n) <= committed


@given(rules(stores=True, intersections=False, native=NATIVE))
def test_the_expression_is_finite_exactly_if_every_operator_is_bounded(rule):
    rule = bound_policy(rule, horizon=1000).distinct[0].rule
    endless = any(term.op.name in ("everything", "older", "since") or _endless_stride(term.op) for term in rule.terms)
    assert (limit(rule, 3) is None) == endless


def _endless_stride(op):
    return op.name == "stride" and op.last is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("everything() & window(4)", 4),
        ("stride(6, phase=0) & span(10)", 9),
        ("everything() & drop()", 0),
        ("window(4) & since(2)", 4),
        ('stride(6, phase="query", last=4) | sink(1)', 25),
        ("span(1)", 0),
        ("window(4) as w & sink(2) | episodic(3, source=evicted(w))", 9),
        ("episodic(2, unit=chunk)", 6),
    ],
)
def test_values(text, value):
    assert limit(parse_rule(text), 3) == value


@pytest.mark.parametrize(
    "text",
    [
        "everything()",
        "stride(6)",
        'stride(6, phase="query")',
        "window(1) | stride(2)",
        "stride(3) & everything() | window(1)",
    ],
)
def test_unbounded_rules_need_a_horizon(text):
    with pytest.raises(HeadforceError, match="HF-UNBOUNDED"):
        bound_policy(parse_rule(text))
    assert bound_policy(parse_rule(text), horizon=30)
