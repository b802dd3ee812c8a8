"""Attention over the model's own cache: tables over its operands, against attention computed from the oracle alone."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings

from headforce.errors import HeadforceError
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering import ops  # noqa: F401  registers the operators
from headforce.lowering.operand_tables import operand_tables
from headforce.lowering.plan import Planner
from headforce.lowering.reach import check_reach, held
from headforce.lowering.verify import check_operands
from headforce.policy import Chunk, FrameSet, Policy, parse_rule
from headforce.testing.operands import HEADS, Operands
from headforce.testing.strategies import policies

from .test_ops import CHECKS

LAYERS = 2
ragged_attention = torch.ops.headforce.ragged_attention


chunks = st.builds(Chunk, st.integers(0, 4), st.integers(0, 12), st.integers(1, 3))


@pytest.mark.slow
@settings(max_examples=60)
@given(
    policies(LAYERS, HEADS, horizon=40),
    chunks,
    st.integers(0, 3),
    st.integers(1, 14),
    st.sampled_from([1, 2, HEADS]),
    st.integers(1, 2),
    st.sampled_from([INTERLEAVED, SPLIT_HALF]),
    st.sampled_from(["reference", "sdpa"]),
)
def test_is_attention_over_what_the_oracle_says_or_refused(
    policy, chunk, sink, capacity, kv_heads, batch, style, target
):
    past = held(chunk, capacity + sink + chunk.frames, sink)
    bound = policy.bind(layers=LAYERS, heads=HEADS, native=parse_rule(f"sink({sink or 1}) | span({capacity + 3})"))
    plan = Planner(bound).plan(chunk)
    needed = FrameSet.of(int(f) for head in plan.heads for r in head.readings for f in r.frames[:, 0])
    used = {int(i) for i in plan.which.flat}
    assume(used == set(range(len(plan.heads))))
    if not needed <= past:
        with pytest.raises(HeadforceError, match="HF-EVICTED"):
            operand_tables(plan, past, 3, batch)
        return
    reads, runs = operand_tables(plan, past, 3, batch)
    check_operands(bound, plan, (reads, runs), past, 3, batch)
    operands = Operands(past, chunk, batch=batch, kv_heads=kv_heads, style=style, value_dim=5)
    for layer in range(LAYERS):
        out = operands.attention(reads[layer], runs[layer], target)
        torch.testing.assert_close(out, operands.expected(bound, layer), rtol=1e-10, atol=1e-10)


def example(start=9, batch=1):
    rules = {
        "a": parse_rule('sink(1)@collapse(4) | stride(2, phase="query", last=1) | window(1)'),
        "b": parse_rule("window(3)"),
        "c": parse_rule("drop()"),
    }
    policy = Policy(rules, heads={0: {"a": (0, 2), "b": (1,), "c": (3,)}}).bind(layers=1, heads=HEADS)
    chunk = Chunk(start // 3, start, 3)
    past = held(chunk, 8, 1)
    plan = Planner(policy).plan(chunk)
    return policy, plan, past, operand_tables(plan, past, 3, batch)


@pytest.mark.parametrize("change", ["row", "rows", "shift", "lost", "query"])
def test_faulty_tables_are_seen(change):
    policy, plan, past, (reads, runs) = example()
    check_operands(policy, plan, (reads, runs), past, 3, 1)
    if change == "lost":
        reads[0, 0, 5] -= 1
    elif change == "query":
        reads[0, 1, 3] -= 3
    else:
        runs[0, 0, ["row", "rows", "shift"].index(change)] += 3 if change != "shift" else 1
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_operands(policy, plan, (reads, runs), past, 3, 1)


def test_tables_of_too_few_videos_are_seen():
    """Nothing names the rows of the other one, which would then be zeros."""
    policy, plan, past, tables = example(batch=1)
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_operands(policy, plan, tables, past, 3, 2)


def test_a_plan_that_is_not_the_oracles_is_seen():
    policy, _, past, _ = example()
    other = Policy({"b": parse_rule("window(2)")}, default="b").bind(layers=1, heads=HEADS)
    plan = Planner(other).plan(Chunk(3, 9, 3))
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_operands(policy, plan, operand_tables(plan, past, 3, 1), past, 3, 1)


@pytest.mark.parametrize("target", ["sdpa", "reference"])
@pytest.mark.parametrize("kv_heads", [2, HEADS])
def test_the_operator_is_what_it_says(target, kv_heads):
    _, plan, past, (reads, runs) = example(batch=2)
    operands = Operands(past, plan.chunk, batch=2, kv_heads=kv_heads)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    arguments = (operands.query, operands.key, operands.value, *tables, operands.theta, 1, INTERLEAVED, 0.4, target)
    torch.library.opcheck(ragged_attention, arguments, test_utils=CHECKS)


def test_a_window_of_all_heads_is_read_without_a_copy(monkeypatch):
    import headforce.lowering.targets.sdpa as module

    seen = []
    original = module.F.scaled_dot_product_attention
    monkeypatch.setattr(
        module.F, "scaled_dot_product_attention", lambda q, k, v, **kw: seen.append(k) or original(q, k, v, **kw)
    )
    policy = Policy({"b": parse_rule("window(3)")}, default="b").bind(layers=1, heads=HEADS)
    chunk = Chunk(3, 9, 3)
    reads, runs = operand_tables(Planner(policy).plan(chunk), held(chunk, 8, 1), 3, 1)
    operands = Operands(held(chunk, 8, 1), chunk)
    operands.attention(reads[0], runs[0], "sdpa")
    (key,) = seen
    assert key.untyped_storage().data_ptr() == operands.key.untyped_storage().data_ptr()


# --- what a cache can hold --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 10), st.integers(0, 4))
def test_what_a_full_cache_holds(frames, more, sink):
    """Against a cache that is filled and rolled frame by frame."""
    capacity = frames + sink + more
    cache = []
    chunk = Chunk(0, 0, frames)
    for _ in range(12):
        while len(cache) + frames > capacity:
            del cache[sink]
        assert list(held(chunk, capacity, sink)) == cache
        cache += chunk.queries
        chunk = chunk.then(frames)


def test_reach_looks_until_every_sink_is_left_behind():
    bound = Policy({"a": parse_rule("lag(4)")}, "a").bind(layers=1, heads=1)
    check_reach(bound, Chunk(0, 0, 1), 5)
    with pytest.raises(HeadforceError, match="HF-EVICTED"):
        check_reach(bound, Chunk(0, 0, 1), 4)  # a sink of 3 frames serves it up to frame 6


@pytest.mark.slow
@settings(max_examples=60)
@given(policies(1, 2, horizon=60), st.integers(1, 3), st.integers(1, 12))
def test_reach_refuses_what_no_stream_can_serve(policy, frames, more):
    """Against trying every sink and every size of chunks over the stream."""
    capacity = frames + more
    bound = policy.bind(layers=1, heads=2, native=parse_rule(f"span({capacity})"))

    def serves(size, sink):
        chunk = Chunk(0, 0, size)
        while chunk.stop <= 60:
            for rule in bound.distinct:
                reads = {f for query in chunk.queries for item in rule.read(chunk, query) for f in item.frames}
                if "native" not in str(rule.at(chunk)) and not reads <= set(held(chunk, capacity, sink)):
                    return False
            chunk = chunk.then(size)
        return True

    if any(serves(size, sink) for size in range(1, frames + 1) for sink in range(capacity - size + 1)):
        check_reach(bound, Chunk(0, 0, frames), capacity)
    else:
        with pytest.raises(HeadforceError, match="HF-EVICTED"):
            check_reach(bound, Chunk(0, 0, frames), capacity)
