"""Storage is derived: what is held is enough for every continuation, and not more than one of them needs."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headforce.policy import Chunk, FrameSet, HeadMemory, HeadRule, Rule, Schedule, Warmup, oracle, parse_rule
from headforce.policy.node import Intersection, Term
from headforce.testing.strategies import decide_by, decisions, novel_by, rules, schedules

NATIVE = parse_rule("sink(1) | span(7)")
warmups = st.none() | st.tuples(rules(native=NATIVE), st.integers(1, 4))


def head_rule(rule, warmup):
    return HeadRule(rule, *warmup) if warmup else HeadRule(rule)


def made_of(op, write):
    """The frames that have to be there when a unit is written."""
    if not op.paged:
        return write.unit
    had = {part.content for part in op.parts(write.replaced)}
    return FrameSet.of(f for part in op.parts(write.unit) if part.content not in had for f in part.frames)


def check_nothing_is_missed(head, schedule, decide):
    """Walks a stream that holds only what is live, and reads everything that can be read."""
    memory = HeadMemory(head.rule)
    stored, before = FrameSet(), None
    for chunk in schedule:
        if before is not None:
            # Candidates are held, or they could not be written.
            memory.commit(before, chunk, decide)
            for term in head.rule.stateful:
                for write in memory.record[term.store, chunk.start]:
                    assert made_of(term.op, write) <= stored
        live = head.live(chunk, memory.held)
        assert live <= stored
        assert live <= FrameSet.interval(0, chunk.start)
        assert all(head.at(chunk).frames(chunk, query, memory.held) <= live for query in chunk.queries)
        stored, before = live | FrameSet.of(chunk.queries), chunk


@given(rules(native=NATIVE), warmups, schedules(chunks=20))
def test_never_lacks_a_frame_that_a_later_chunk_reads(rule, warmup, schedule):
    check_nothing_is_missed(head_rule(rule, warmup), schedule, decide_by(0))


@given(rules(stores=True, native=NATIVE), warmups, schedules(chunks=20), decisions())
def test_never_lacks_a_frame_that_a_store_holds_or_is_offered(rule, warmup, schedule, decide):
    check_nothing_is_missed(head_rule(rule, warmup), schedule, decide)


def test_a_window_that_feeds_a_store_is_held_although_only_a_part_of_it_is_read():
    rule = parse_rule("window(6) as recent & sink(2) | episodic(3, source=evicted(recent))")
    assert str(rule.live(Chunk(4, 12, 3))) == "6-11"
    check_nothing_is_missed(HeadRule(rule), Schedule((3,) * 12), novel_by(lambda store, held, unit: (True, FrameSet())))


def test_a_window_that_feeds_a_store_is_held_during_the_warmup():
    rule = parse_rule("window(4) as recent | episodic(2, source=evicted(recent))")
    head = HeadRule(rule, parse_rule("drop()"), 3)
    assert str(head.live(Chunk(1, 3, 3))) == "0-2"
    check_nothing_is_missed(head, Schedule((3,) * 12), novel_by(lambda store, held, unit: (True, FrameSet())))


@given(rules(native=NATIVE), warmups, schedules(chunks=8))
def test_is_what_the_continuation_by_single_frames_reads(rule, warmup, schedule):
    assume(not _filters_by_query(rule.node))
    assume(warmup is None or not any(term.op.by_query for term in warmup[0].terms))
    head = head_rule(rule, warmup)
    ending = Warmup(warmup[1], warmup[0]) if warmup else None
    chunks = list(schedule)
    for at, chunk in enumerate(chunks):
        continuation = chunks[: at + 1]
        for _ in range(40):
            continuation.append(continuation[-1].then(1))
        assert set(head.live(chunk)) == oracle.live(rule, ending, continuation, at)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("warmup", ["drop()", "window(1)", "sink(2)", "span(3)"])
@pytest.mark.parametrize(
    "text",
    ["window(2)", "window(7)", "span(5)", "sink(3)", "stride(3, phase=1, last=2)", 'stride(4, phase="query", last=1)'],
)
def test_the_warmup_holds_what_comes_after_it_and_no_more(text, warmup, count):
    rule, early = parse_rule(text), parse_rule(warmup)
    head = HeadRule(rule, early, count)
    for sizes in product((1, 2, 3), repeat=count):
        schedule = Schedule((*sizes, *(1,) * 12))
        check_nothing_is_missed(head, schedule, decide_by(0))
        for at, chunk in enumerate(list(schedule)[:count]):
            continuation = [*list(schedule)[: at + 1]]
            for _ in range(12):
                continuation.append(continuation[-1].then(1))
            assert set(head.live(chunk)) == oracle.live(rule, Warmup(count, early), continuation, at)


def _filters_by_query(node):
    """Whether an intersection has a part whose frames depend on the query."""
    if isinstance(node, Term):
        return False
    if isinstance(node, Intersection) and Rule(_kept(node)).by_query:
        return True
    return any(map(_filters_by_query, node.parts))


def _kept(node):
    """The node without its maps: positions that depend on the query do not count."""
    if isinstance(node, Term):
        return replace(node, map=type(node).map)
    return type(node)(tuple(map(_kept, node.parts)))


@given(rules(), schedules())
def test_a_filter_by_query_is_followed_from_above(rule, schedule):
    rule = Rule(_kept(rule.node)) & parse_rule('stride(3, phase="query", last=2)')
    for chunk in schedule:
        assert all(rule.frames(chunk, query) <= rule.live(chunk) for query in chunk.queries)
