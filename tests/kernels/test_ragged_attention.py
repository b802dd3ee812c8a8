"""The portable kernel in the interpreter, against attention computed from the oracle alone.

The budget is that of every target: at most twice the error of the same attention in plain low precision, plus rounding.
Pages and cache rows that nothing names hold NaN.
"""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.kernels.budget import Budget, limit
from headforce.kernels.config import Config
from headforce.kernels.reference import ragged_attention
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering.attention import attention
from headforce.lowering.operand_tables import operand_tables
from headforce.lowering.plan import Planner
from headforce.lowering.reach import held
from headforce.policy import Chunk
from headforce.testing.operands import Operands
from headforce.testing.rig import Rig, check, mixed
from headforce.testing.streams import LOW, rigs
from tests.lowering.test_operands import example

from .chunks import tables_of

SMALL = Config(16, 16)


@settings(max_examples=8)
@given(rigs(LOW, ["triton"]), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_is_attention_over_what_the_oracle_says(rig, sizes):
    start = 0
    for frames in sizes:
        check(rig, start, frames)
        start += frames


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "style"),
    [
        pytest.param(torch.float32, 64, 64, INTERLEAVED, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, 96, 40, SPLIT_HALF, marks=pytest.mark.slow),
        (torch.bfloat16, 128, 128, INTERLEAVED),
        pytest.param(torch.float16, 22, 22, SPLIT_HALF, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_head_dims_of_real_models(dtype, head_dim, value_dim, style):
    """Pages of 40 rows: whole blocks of 32 and a rest in every run, and tiles of query rows that end within a frame."""
    dims = {"head_dim": head_dim, "value_dim": value_dim, "first_pair": 1, "pairs": head_dim // 6}
    rig = Rig(mixed(), "triton", dtype=dtype, tokens=40, style=style, strided=style == SPLIT_HALF, **dims)
    for start in (0, 3, 6):
        check(rig, start, 3)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_blocks_that_runs_do_not_fill(rows):
    rig = Rig(mixed(), "triton", dtype=torch.float32, tokens=rows, head_dim=16)
    for start in (0, 3, 6):
        check(rig, start, 3)


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        pytest.param((1, 3, 2), torch.float32, marks=pytest.mark.slow),
        pytest.param((7,), torch.float32, marks=pytest.mark.slow),
        ((1, 4), torch.bfloat16),
    ],
    ids=str,
)
def test_parts_make_the_same_whole(parts, dtype):
    """Parts of several blocks, of one, and of none: the last cuts some reads into more parts than they have blocks."""
    rig = Rig(mixed(), "triton", dtype=dtype, tokens=20, head_dim=16)
    for start in (0, 3):
        (query, whole), *_ = rig.run(start, 3)
    reads, runs, room = tables_of(rig, parts)
    arguments = (rig.pool.k, rig.pool.v, reads, runs, rig.theta, 0, rig.style, rig.scale)
    cut = {"config": SMALL, "room": room}
    out, lse = attention(query, *arguments, **cut, with_lse=True)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, whole, rtol=tolerance, atol=tolerance)
    again, _ = attention(query, *arguments, **cut)
    assert torch.equal(out, again)
    _, plain = attention(query, *arguments[:2], rig.pool.reads[0], *arguments[3:], config=SMALL, with_lse=True)
    torch.testing.assert_close(lse, plain, rtol=1e-4, atol=1e-4)


def test_the_log_of_the_sum_of_exponentials():
    """With values of one, the output is one; with the lse of two halves, they can be put together again."""
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk, rows=3)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    query, key, value = (t.float() for t in (operands.query, operands.key, operands.value))
    rest = (*tables, operands.theta, 1, INTERLEAVED, 0.4)
    _, lse = attention(query, key, value, *rest, config=SMALL, with_lse=True)
    # exp(lse) is the sum of the weights: scale the scores by 0 and it counts keys.
    _, counted = attention(query, key, value, *rest[:-1], 0.0, config=SMALL, with_lse=True)
    count = {1: (3 + 3) * 3, 3: 3 * 3}  # window(3) and drop(), the chunk included
    for head, keys in count.items():
        torch.testing.assert_close(
            counted[:, head].exp(), torch.full_like(counted[:, head], keys), rtol=1e-5, atol=1e-5
        )
    assert lse.shape == (1, 4, 9)
    assert torch.isfinite(lse).all()


def test_a_negative_scale_prefers_what_is_least_alike():
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk, rows=3)
    query, key, value = (t.float() for t in (operands.query, operands.key, operands.value))
    rest = (torch.from_numpy(reads[0]), torch.from_numpy(runs[0]), operands.theta, 1, INTERLEAVED, -0.4)
    out, _ = attention(query, key, value, *rest, config=SMALL)
    torch.testing.assert_close(out, ragged_attention(query, key, value, *rest), rtol=1e-5, atol=1e-5)


# --- operands of the model's own cache -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize(("kv_heads", "style"), [(4, INTERLEAVED), (2, SPLIT_HALF), (1, INTERLEAVED)])
def test_rows_of_the_models_own_cache(dtype, kv_heads, style):
    policy, plan, past, (reads, runs) = example(batch=2)
    operands = Operands(past, plan.chunk, batch=2, kv_heads=kv_heads, value_dim=5, style=style)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    exact = operands.expected(policy, 0)
    query, key, value = (t.to(dtype) for t in (operands.query, operands.key, operands.value))
    out, _ = attention(query, key, value, *tables, operands.theta, 1, style, 0.4, config=SMALL)
    plain = ragged_attention(query, key, value, *tables, operands.theta, 1, style, 0.4)
    assert Budget(exact, limit(exact, plain)).holds(out)


def test_a_cache_of_another_dtype():
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    query, key, value = operands.query.float(), operands.key.bfloat16(), operands.value.bfloat16()
    out, _ = attention(query, key, value, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL)
    expected = ragged_attention(query, key, value, *tables, operands.theta, 1, INTERLEAVED, 0.4)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_reads_without_rows_give_zero():
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk)
    empty = reads[0].copy()
    empty[0, 5] = 0
    head = empty[0, 1]
    tables = torch.from_numpy(empty), torch.from_numpy(runs[0])
    arguments = [t.float() for t in (operands.query, operands.key, operands.value)]
    out, _ = attention(*arguments, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL)
    expected = ragged_attention(*arguments, *tables, operands.theta, 1, INTERLEAVED, 0.4)
    assert (expected[:, : empty[0, 3], head] == 0).any()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# --- positions far apart ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 400, -50_000])
def test_shifts_of_long_streams_lose_no_digits(shift):
    """Angles of tens of thousands of radians; float32 alone would be off by a hundredth."""
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk)
    runs = runs[0].copy()
    runs[:, 2] = np.where(runs[:, 1] > 0, shift, 0)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs)
    exact = ragged_attention(operands.query, operands.key, operands.value, *tables, operands.theta, 1, INTERLEAVED, 0.4)
    arguments = [t.float() for t in (operands.query, operands.key, operands.value)]
    out, _ = attention(*arguments, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------


def test_what_the_kernel_does_not_take_is_refused():
    _, plan, past, (reads, runs) = example()
    operands = Operands(past, plan.chunk)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    with pytest.raises(HeadforceError, match="HF-KERNEL"):  # float64
        attention(
            operands.query, operands.key, operands.value, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL
        )
    pages = torch.zeros(4, 3, 12)[..., ::2]
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        attention(operands.query.float(), pages, pages, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL)


def test_a_plan_of_many_readings_and_a_cache_that_evicts():
    """Every query frame reads by its own phase, over a cache that has rolled."""
    from headforce.policy import Policy, parse_rule

    rule = parse_rule('sink(1)@collapse(5) | stride(3, phase="query", last=1)@clamp(2) | window(1)')
    policy = Policy({"a": rule}, default="a").bind(layers=1, heads=4)
    chunk = Chunk(3, 9, 3)
    past = held(chunk, 9, 1)
    reads, runs = operand_tables(Planner(policy).plan(chunk), past, 3, 1)
    assert reads.shape[1] == 4 * 3
    operands = Operands(past, chunk)
    tables = torch.from_numpy(reads[0]), torch.from_numpy(runs[0])
    arguments = [t.float() for t in (operands.query, operands.key, operands.value)]
    out, _ = attention(*arguments, *tables, operands.theta, 1, INTERLEAVED, 0.4, config=SMALL)
    torch.testing.assert_close(out.double(), operands.expected(policy, 0), rtol=1e-5, atol=1e-5)
