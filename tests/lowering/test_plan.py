"""Plans: equal to the oracle for every head, query frame and chunk, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.lowering.plan import Planner
from headforce.policy import Chunk, HeadMemory, Policy, Schedule, Warmup, oracle, parse_rule
from headforce.testing.strategies import decisions, novel_by, policies, schedules

NATIVE = parse_rule("sink(1) | span(7)")


def plans(bound, schedule, decide=None):
    """The plan of every chunk, with the memories that it was made from."""
    planner = Planner(bound)
    memories = {
        (layer, 0, head): HeadMemory(rule.rule)
        for layer, row in enumerate(bound.rules)
        for head, rule in enumerate(row)
        if rule.rule.stateful
    }
    before = None
    for chunk in schedule:
        if before is not None:
            for memory in memories.values():
                memory.commit(before, chunk, decide)
        yield planner.plan(chunk, memories), memories
        before = chunk


def bound_policy(text, *, warmup=None, horizon=None, position_range=None, heads=1):
    policy = Policy({"a": parse_rule(text)}, "a", warmup=warmup, horizon=horizon, position_range=position_range)
    return policy.bind(layers=1, heads=heads, native=NATIVE)


def reads(plan, layer=0, head=0):
    """query frame -> {frame: position}, once every query frame was seen to be there once and no frame twice."""
    found = {}
    for reading in plan.of(layer, head).readings:
        pairs = [pair for item in reading.items for pair in zip(item.frames, item.positions, strict=True)]
        assert len(dict(pairs)) == len(pairs)
        assert reading.frames.tolist() == sorted([f, p - f] for f, p in pairs)
        for query in reading.queries:
            assert query not in found
            found[query] = dict(pairs)
    assert list(found) == list(plan.chunk.queries)
    return found


def parts_read(reading):
    """(store, what a part is made of) -> position, once no part was seen twice."""
    pairs = [
        ((item.store, *part.content), position)
        for item in reading.parts
        for part, position in zip(item.parts, item.positions, strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# --- the oracle ---------------------------------------------------------------------------------------------------


def check(policy, schedule, decide=None, layers=3, heads=4):
    bound = policy.bind(layers=layers, heads=heads, native=NATIVE)
    warmup = policy.warmup and Warmup(policy.warmup.chunks, bound.rules[0][0].warmup)
    for plan, memories in plans(bound, schedule, decide):
        for layer in range(layers):
            for head in range(heads):
                record = memories[layer, 0, head].explained() if (layer, 0, head) in memories else None
                rule = bound.rules[layer][head].rule
                for query, found in reads(plan, layer, head).items():
                    assert found == oracle.read(rule, warmup, plan.chunk, query, record)
                    assert all(frame in plan.of(layer, head).live for frame in found)
                for reading in plan.of(layer, head).readings:
                    for query in reading.queries:
                        assert parts_read(reading) == oracle.read_parts(rule, warmup, plan.chunk, query, record)


@settings(max_examples=60)
@given(policies(), schedules())
def test_plan_is_the_oracle(policy, schedule):
    check(policy, schedule)


@settings(max_examples=60)
@given(policies(layers=1, heads=3, stores=True), schedules(), decisions())
def test_plan_is_the_oracle_with_recorded_decisions(policy, schedule, decide):
    check(policy, schedule, decide, layers=1, heads=3)


@pytest.mark.parametrize(
    "text",
    [
        "(sink(2) | window(3))@contiguous",
        '(sink(1) | stride(3, phase="query", last=2))@contiguous',
        'stride(4, phase="query", last=2)@collapse(5) | window(2)@clamp(3)',
        "episodic(3) | window(1)",
        "episodic(2, unit=chunk, evict=least_novel) | window(1)",
        "window(2) as recent | episodic(3, source=evicted(recent), evict=least_novel)@collapse(9)",
        "window(2) as a | episodic(2, source=evicted(a)) as b | episodic(2, unit=chunk, source=evicted(b)) as c",
        "native() & stride(2, phase=1) | drop()",
        "everything()@clamp(4)",
        "(merge(2, last=3)@clamp(5) | window(1)) & older(3) | sink(1)",
        "(sink(1) | select(2, segments=3, source=evicted(near), reuse=2)) & older(2) | window(2) as near",
        '(merge(2, width=2, last=2) | stride(3, phase="query", last=2))@contiguous',
        "merge(2, last=2) as a | merge(3, last=2)@collapse(9) as b | merge(2, last=3)@clamp(4) as c",
    ],
)
@settings(max_examples=15)
@given(schedule=schedules(chunks=14), decide=decisions())
def test_plan_is_the_oracle_for(text, schedule, decide):
    for warmup in (None, Warmup(2), Warmup(3, parse_rule("sink(1)@collapse(4) | window(5)"))):
        check(Policy({"a": parse_rule(text)}, "a", warmup=warmup, horizon=200), schedule, decide, layers=1, heads=2)


# --- the form -----------------------------------------------------------------------------------------------------


def test_query_frames_that_read_alike_share_a_reading():
    (chunk_plan, _), *_ = plans(bound_policy("window(2)@collapse(9)"), [Chunk(4, 8, 4)])
    # Up to frame 9 everything is at position 0; behind it the position moves with the query.
    assert [reading.queries for reading in chunk_plan.of(0, 0).readings] == [(8, 9), (10,), (11,)]
    (chunk_plan, _), *_ = plans(bound_policy("window(2)"), [Chunk(4, 8, 4)])
    assert [reading.queries for reading in chunk_plan.of(0, 0).readings] == [(8, 9, 10, 11)]


def test_kinds_shifts_and_counts():
    (plan, _), *_ = plans(bound_policy("sink(2)@collapse(3) | window(1)"), [Chunk(3, 9, 1)])
    head = plan.of(0, 0)
    assert [(i.kind, i.frames, i.positions) for i in head.readings[0].items] == [
        ("sink", (0, 1), (6, 6)),
        ("window", (8,), (8,)),
    ]
    assert head.readings[0].frames.tolist() == [[0, 6], [1, 5], [8, 0]]
    assert head.readings[0].frames.dtype == np.int32
    assert (head.kept, head.remaps, str(head.live)) == (3, True, "0-1, 8")


def test_nothing_to_read():
    (plan, _), *_ = plans(bound_policy("drop()"), [Chunk(3, 9, 3)])
    head = plan.of(0, 0)
    assert head.readings[0].items == ()
    assert head.readings[0].frames.shape == (0, 2)
    assert (head.kept, head.remaps) == (0, False)


def test_heads_with_one_rule_share_a_plan():
    policy = Policy({"a": parse_rule("sink(1)"), "b": parse_rule("window(1)")}, "a", heads={1: {"b": (0, 2)}})
    plan = Planner(policy.bind(layers=2, heads=3)).plan(Chunk(1, 3, 3))
    assert len(plan.heads) == 2
    assert plan.which.tolist() == [[[0, 0, 0]], [[1, 0, 1]]]


def test_heads_with_state_share_a_plan_while_they_hold_the_same():
    bound = bound_policy("episodic(2)", heads=3)
    memories = {(0, 0, head): HeadMemory(bound.rules[0][head].rule) for head in range(3)}
    for (*_, head), memory in memories.items():
        memory.commit(
            Chunk(0, 0, 3), Chunk(1, 3, 3), novel_by(lambda store, held, unit, head=head: (head < 2, held[:1]))
        )
    assert Planner(bound).plan(Chunk(1, 3, 3), memories).which.tolist() == [[[0, 0, 1]]]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_past_the_horizon():
    planner = Planner(bound_policy("sink(1)", horizon=10))
    planner.plan(Chunk(3, 7, 3))
    with pytest.raises(HeadforceError, match="HF-HORIZON"):
        planner.plan(Chunk(3, 8, 3))


def test_no_memory_for_a_head_with_state():
    with pytest.raises(HeadforceError, match="HF-DECISION") as error:
        Planner(bound_policy("episodic(2)")).plan(Chunk(1, 3, 3))
    assert error.value.site == "layer 0, batch row 0, head 0"


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("sink(1)", 9),
        ("sink(1)@clamp(10)", None),
        ("sink(1)@collapse(10)", None),
        ("sink(1)@collapse(11)", 9),
        ("(sink(8) | window(1))@contiguous", 9),
        ("(sink(7) | window(1))@contiguous", None),
        ("drop()", None),
    ],
)
def test_position_range(text, refused):
    """`refused` is the first chunk of 3 frames with a query that sees a frame at a distance of more than 10."""
    planner = Planner(bound_policy(text, position_range=10))
    for start in range(0, 60 if refused is None else refused, 3):
        planner.plan(Chunk(start // 3, start, 3))
    if refused is not None:
        with pytest.raises(HeadforceError, match="HF-POSITION") as error:
            planner.plan(Chunk(refused // 3, refused, 3))
        assert error.value.needed == "a distance of at most 10"


def test_position_range_counts_the_chunk_itself():
    planner = Planner(bound_policy("drop()", position_range=2))
    planner.plan(Chunk(0, 0, 3))
    with pytest.raises(HeadforceError, match="HF-POSITION") as error:
        planner.plan(Chunk(0, 0, 4))
    assert "the current chunk" in error.value.found


@pytest.mark.slow
@settings(max_examples=60)
@given(policies(layers=1, heads=3), schedules())
def test_position_range_is_kept_exactly(policy, schedule):
    """A range that is as large as the largest distance passes, and one less does not."""

    def run(allowed):
        parts = (policy.classes, policy.default, policy.heads, policy.layers, policy.warmup, policy.horizon)
        return plans(Policy(*parts, allowed).bind(layers=1, heads=3, native=NATIVE), schedule)

    far = max(schedule.sizes) - 1
    for plan, _ in run(None):
        for head in range(3):
            far = max(far, *(abs(q - p) for q, found in reads(plan, 0, head).items() for p in found.values()), 0)
    list(run(max(far, 1)))
    if far > 1:
        with pytest.raises(HeadforceError, match="HF-POSITION"):
            list(run(far - 1))


def test_schedules_may_be_planned_from_any_chunk():
    bound = bound_policy("sink(1) | window(2)")
    whole = [plan for plan, _ in plans(bound, Schedule((3,) * 5))]
    assert reads(Planner(bound).plan(Chunk(4, 12, 3))) == reads(whole[4])
