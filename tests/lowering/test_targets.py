"""Every target against attention computed from the oracle alone, over pools that hold NaN where nothing was written."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import headforce.lowering.targets.sdpa as sdpa_module
from headforce.errors import HeadforceError
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF, copy_turned, factors, turn
from headforce.lowering.targets import find_target, load_targets, registry, target
from headforce.policy import Policy, parse_rule
from headforce.testing import check_target
from headforce.testing.rig import Rig, check, mixed, turned
from headforce.testing.strategies import novel_by
from headforce.testing.streams import LOW
from headforce.testing.targets import LAWS


@pytest.mark.parametrize("target", ["reference", "sdpa"])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(target, law):
    law(target, (torch.float64, *LOW), 24)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda out: out * 1.01, "Drawn policies"),
        (lambda out: out + 1e-3 * (out == 0), "give zero"),
        (lambda out: out.roll(1, dims=2), "Drawn policies"),
        (lambda out: out.masked_fill(out == out.max(), torch.nan), "Drawn policies"),
    ],
    ids=["scaled", "not zero", "heads swapped", "NaN"],
)
def test_a_target_that_breaks_a_law_is_found(fault, words):
    def faulty(*given):
        """Attention, and a fault."""
        return fault(find_target("sdpa")(*given))

    target("faulty")(faulty)
    try:
        with pytest.raises(AssertionError, match=f"target faulty: (.|\n)*{words}"):
            check_target("faulty", dtypes=[torch.float32], examples=10)
    finally:
        for names in (registry._TARGETS, registry._LEAST_ROWS):
            names.pop("faulty")


@pytest.mark.parametrize("target", ["reference", "sdpa"])
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (96, 96), (64, 40), (22, 22)])
def test_head_dims_of_real_models(target, dtype, head_dim, value_dim):
    for style, strided in ((INTERLEAVED, False), (SPLIT_HALF, True)):
        dims = {"head_dim": head_dim, "value_dim": value_dim, "first_pair": 1, "pairs": head_dim // 6}
        rig = Rig(mixed(), target, dtype=dtype, style=style, canonical=strided, strided=strided, **dims)
        for start in (0, 3, 6, 9):
            check(rig, start, 3)


@pytest.mark.parametrize("target", ["reference", "sdpa"])
def test_pools_may_have_another_dtype_than_the_query(target):
    rig = Rig(mixed(), target, dtype=torch.bfloat16)
    for start in (0, 3, 6):
        rig.run(start, 3)
    query = torch.randn(1, 9, 5, 6, dtype=torch.float32)
    out = rig.attention(0, query)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), rig.expected(0, query), rtol=0, atol=0.02)


# --- no more calls and copies than needed -----------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The operands of every scaled_dot_product_attention call."""
    seen, real = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        seen.append((query, key, value))
        return real(query, key, value, **kwargs)

    monkeypatch.setattr(sdpa_module.F, "scaled_dot_product_attention", spy)
    return seen


def lies_in(operand, pool):
    begin, end = pool.data_ptr(), pool.data_ptr() + pool.nbytes
    return begin <= operand.data_ptr() < end and operand.untyped_storage().data_ptr() == begin


@pytest.mark.parametrize("members", [(0, 1, 2, 3), (0, 2), (1, 3)])
@pytest.mark.parametrize("rule", ["window(4)", "sink(1) | window(2)", "drop()"])
def test_equal_heads_are_one_call_on_a_view_of_the_pool(calls, members, rule):
    policy = Policy({"a": parse_rule(rule), "b": parse_rule("window(9)")}, default="b", heads={0: {"a": members}})
    rig = Rig(policy.bind(layers=1, heads=4))
    for start in range(0, 21, 3):
        calls.clear()
        check(rig, start, 3)
        assert len(calls) == (1 if len(members) == 4 else 2)
        assert sum(key.shape[1] for _, key, _ in calls) == 4
        assert all(lies_in(key, rig.pool.k) and lies_in(value, rig.pool.v) for _, key, value in calls)


def test_heads_of_two_rules_with_equal_plans_may_lie_in_any_order(calls):
    # The regions of heads 0 and 3 lie in front of those of 1 and 2, and all four read the same rows of theirs.
    rules = {"a": parse_rule("window(4)"), "b": parse_rule("window(4) | window(2)")}
    rig = Rig(Policy(rules, heads={0: {"a": (0, 3), "b": (1, 2)}}).bind(layers=1, heads=4))
    for start in range(0, 15, 3):
        check(rig, start, 3)
    assert all(lies_in(key, rig.pool.k) for _, key, _ in calls)


def test_heads_with_state_that_hold_the_same_are_one_call(calls):
    policy = Policy({"a": parse_rule("episodic(2) | window(1)")}, default="a")
    rig = Rig(policy.bind(layers=1, heads=4))
    for start in range(0, 12, 3):
        calls.clear()
        rig.run(start, 3, lambda lane: novel_by(lambda store, held, unit: (not held, unit)))
        assert len(calls) == 1


def test_rules_by_query_make_one_call_for_each_reading(calls):
    policy = Policy({"a": parse_rule('stride(6, phase="query", last=2)')}, default="a").bind(layers=1, heads=4)
    rig = Rig(policy)
    for start in range(0, 18, 3):
        calls.clear()
        check(rig, start, 3)
    assert len(calls) == 3


# --- parts ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.data())
def test_turning_is_complex_multiplication(half, data):
    first = data.draw(st.integers(0, half))
    angle = torch.tensor(data.draw(st.lists(st.floats(-50, 50), max_size=half - first)), dtype=torch.float64)
    key = torch.randn(3, 2 * half, dtype=torch.float64, generator=torch.Generator().manual_seed(half))
    for style in (INTERLEAVED, SPLIT_HALF):
        torch.testing.assert_close(turn(key, angle, first, style), turned(key, angle, first, style))
        torch.testing.assert_close(turn(turn(key, angle, first, style), -angle, first, style), key)


@pytest.mark.parametrize("style", [INTERLEAVED, SPLIT_HALF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_turning_on_the_way_into_a_buffer_is_turning(style, dtype):
    theta, key = torch.tensor([0.3, 0.01], dtype=torch.float64), torch.randn(3, 5, 10, dtype=dtype)
    buffer = torch.full((3, 9, 10), torch.nan, dtype=dtype)
    for shift, turns in zip((7, -2), factors(theta, (7, -2)), strict=True):
        copy_turned(buffer[:, 2:7], key, turns, 1, style)
        torch.testing.assert_close(buffer[:, 2:7], turn(key, shift * theta, 1, style))
    assert buffer[:, :2].isnan().all()
    assert buffer[:, 7:].isnan().all()


def test_all_targets_are_found_and_others_named():
    assert {"reference", "sdpa"} <= set(load_targets())
    with pytest.raises(HeadforceError, match="did you mean 'sdpa'"):
        find_target("spda")
