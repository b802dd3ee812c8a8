"""Passes that send frames in front of those that they write: those read what the first written frame reads."""

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.lowering.operand_tables import operand_tables
from headforce.lowering.plan import Planner
from headforce.lowering.state.decider import decider
from headforce.lowering.stream import Event, Stream
from headforce.lowering.verify import check_operands, check_plan, check_tables
from headforce.policy import Chunk, FrameSet, Policy, parse_answer, parse_rule
from headforce.testing.rig import Rig, attend, mixed

from .test_switch import RULES, rig_of
from .test_switch import run as run_chunks


def bound(rule, **kwargs):
    return Policy({"a": parse_rule(rule)}, default="a", **kwargs).bind(layers=1, heads=1)


def run(rig, start, frames, lead):
    """One pass of every layer; its error, and that of the frames in front."""
    event = rig.stream.begin(start, frames, lead=lead)
    rig.pool.update()
    check_plan(rig.stream)
    check_tables(rig.pool)
    errors = [0.0, 0.0]
    for layer in range(rig.policy.layers):
        shape = (rig.batch, (lead + frames) * rig.tokens, rig.policy.heads, rig.head_dim)
        query = torch.randn(shape, dtype=rig.dtype, generator=rig.generator) * 3
        key, value = (rig._random(width) for width in (rig.head_dim, rig.value_dim))
        rig.write(layer, key, value)
        out, at = rig.attention(layer, query), lead * rig.tokens
        errors[0] = max(errors[0], (out[:, at:] - rig.expected(layer, query[:, at:])).abs().max().item())
        for batch in range(rig.batch):
            for head in range(rig.policy.heads):
                keys, values = rig._read(layer, batch, head, start, rig.dtype)
                wanted = attend(query[batch, :at, head], keys, values, rig.scale)
                errors[1] = max(errors[1], *(out[batch, :at, head] - wanted).abs().flatten().tolist(), 0.0)
    return event, errors


@pytest.mark.parametrize("target", ["sdpa", "reference"])
@pytest.mark.parametrize("canonical", [False, True])
def test_attention_of_what_is_written_and_of_what_is_in_front(target, canonical):
    """Frames run again behind a prompt switch, under shifts and rules by query; then the stream goes on."""
    rig = Rig(mixed(), target, batch=2, canonical=canonical)
    for start in range(0, 12, 2):
        rig.run(start, 2)
    before = {f for lane in rig.stream.lanes for f in lane.slots.held}
    assert rig.stream.switch(again=3) == 3
    event, errors = run(rig, 9, 3, 2)
    assert event is Event.REWRITE
    assert max(errors) < 1e-11
    assert {f for lane in rig.stream.lanes for f in lane.slots.held} <= before  # nothing in front is written
    event, errors = run(rig, 12, 2, 0)
    assert event is Event.ADVANCE
    assert max(errors) < 1e-11


def test_the_same_range_again_is_a_repeat_with_as_much_in_front():
    stream = Stream(bound("sink(1) | window(3)"))
    for start in (0, 2, 4):
        stream.begin(start, 2)
    assert stream.begin(3, 3, lead=1) is Event.REWRITE
    plan = stream.plan
    assert stream.begin(3, 3, lead=1) is Event.REPEAT
    assert stream.plan is plan
    assert stream.begin(3, 3) is not Event.REPEAT
    assert stream.plan.chunk.lead == 0


@pytest.mark.parametrize(("start", "lead"), [(2, 3), (4, -1)])
def test_no_frames_in_front_of_the_first(start, lead):
    stream = Stream(bound("window(3)"))
    stream.begin(0, 6)
    with pytest.raises(HeadforceError, match="HF-CLOCK"):
        stream.begin(start, 2, lead=lead)


def test_what_is_in_front_is_farther_from_the_end_of_the_chunk():
    """And counts for the range of positions."""
    near, far = (bound("sink(1)@collapse(2) | window(2)", position_range=n) for n in (5, 4))
    for policy in (near, far):
        stream = Stream(policy)
        stream.begin(0, 3)
        stream.begin(3, 3)
        if policy is near:
            stream.begin(3, 3, lead=3)
            continue
        with pytest.raises(HeadforceError, match="HF-POSITION"):
            stream.begin(3, 3, lead=3)


def test_operands_of_the_model_have_rows_for_both():
    """View mode: the rows of the query that a table names are those of all frames that were sent."""
    policy = bound('sink(1) | stride(2, phase="query", last=1)')
    chunk, past = Chunk(2, 6, 2, lead=2), FrameSet.interval(0, 6)
    plan = Planner(policy).plan(chunk)
    reads, runs = operand_tables(plan, past, 3, 1)
    rows = sorted((row, row + count) for row, count in reads[0][:, 2:4].tolist() if count)
    assert rows == [(0, 9), (9, 12)]
    check_operands(policy, plan, (reads, runs), past, 3, 1)
    reads[0][:, 2] += 3
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_operands(policy, plan, (reads, runs), past, 3, 1)


@pytest.mark.parametrize("again", [False, True])
def test_frames_that_run_again_are_no_rhythm_of_the_stream(again):
    """Room is made for what the pass itself takes, and for no second one of its size."""
    stream = Stream(bound("sink(1) | window(2)"))
    stream.begin(0, 9, again=again)
    pages = stream.lanes[0].slots.pages
    assert pages == (9 if again else 12)
    stream.begin(9, 2)
    assert stream.lanes[0].slots.pages == pages


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("answer", ["keep()", "flush(2)", "flush(1, stores=yes)", "recache(9)", "cut(5)"])
def test_frames_that_a_pipeline_runs_again_whatever_the_rule_asks_for(rule, answer):
    """Three prompts, and what every rule reads then is what the oracle says."""
    rig = rig_of(rule, answer)
    at = run_chunks(rig, 4)
    for _ in range(2):
        assert rig.stream.switch(decider(rig.pool, rig.turning), again=4) == 4
        if rule == "memory" and not parse_answer(answer).empties_stores:
            # The store would have to be what it was there, and what that held has gone.
            with pytest.raises(HeadforceError, match="HF-FORGOTTEN"):
                rig.check(at - 4, 4)
            return
        rig.check(at - 4, 4)
        at = run_chunks(rig, 3, at)
