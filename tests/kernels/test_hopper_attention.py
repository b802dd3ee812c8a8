"""The kernel for Hopper in the emulator, through the launcher, against attention computed from the oracle alone.

The emulator draws an order of events from a seed, and finds races whatever the order; what it runs is the source that
is compiled for the GPU. Pages hold NaN where nothing was written.
"""

import itertools
import re
from pathlib import Path

import pytest
import torch
from triton.experimental.gluon._runtime import GluonJITFunction

from headforce.errors import HeadforceError
from headforce.kernels.budget import budget_of
from headforce.kernels.config import Config
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.kernels.spec import Spec
from headforce.lowering import attention as attention_module
from headforce.lowering import codegen
from headforce.lowering.attention import HOPPER, attention, check_hopper_operands
from headforce.lowering.operand_tables import operand_tables
from headforce.lowering.plan import Planner
from headforce.lowering.reach import held
from headforce.lowering.targets import check_rows, find_target
from headforce.policy import Chunk, Policy, parse_rule
from headforce.testing.operands import Operands
from headforce.testing.rig import Rig, check, mixed
from tests.kernels.gluon_emulator import Fault, edited, run

from .chunks import tables_of

SMALL = Config(32, 16, 4, 2, descriptors=True)


def two_heads():
    """One whose first frame moves along with the query, and one with a window."""
    rules = {"sink": parse_rule("sink(1)@collapse(3) | window(1)"), "window": parse_rule("window(2)")}
    return Policy(rules, default="window", heads={0: {"sink": (0,)}}).bind(layers=1, heads=2)


@pytest.fixture
def emulated(monkeypatch):
    """Launches of Gluon kernels go to the emulator; `emulated.edit` plants a fault in them."""
    seeds = itertools.count()
    on_triton = attention_module.launch
    switch = type("Switch", (), {"edit": None, "launches": 0})

    def launched(kernel, grid, arguments, config):
        if not isinstance(kernel, GluonJITFunction):
            return on_triton(kernel, grid, arguments, config)
        chosen = [arguments[name] for name in kernel.arg_names]
        switch.launches += 1
        return run(edited(kernel, *switch.edit) if switch.edit else kernel, grid, *chosen, seed=next(seeds))

    monkeypatch.setattr(attention_module, "launch", launched)
    monkeypatch.setattr(attention_module, "_check_hopper", lambda *_: None)
    monkeypatch.setattr(attention_module, "INTERPRETED", SMALL)
    return switch


@pytest.mark.parametrize(
    ("dtype", "head_dim", "value_dim", "style"),
    [(torch.bfloat16, 64, 64, INTERLEAVED), pytest.param(torch.float16, 128, 64, SPLIT_HALF, marks=pytest.mark.slow)],
    ids=str,
)
def test_is_attention_over_what_the_oracle_says(emulated, dtype, head_dim, value_dim, style):
    """Pages of 20 rows: runs end within a block, and tiles of query rows end within a frame."""
    dims = {"head_dim": head_dim, "value_dim": value_dim, "first_pair": 1, "pairs": head_dim // 6}
    rig = Rig(mixed(), "hopper", dtype=dtype, tokens=20, style=style, strided=style == SPLIT_HALF, **dims)
    for start in (0, 3, 6):
        check(rig, start, 3)
    assert emulated.launches == 6


@pytest.mark.parametrize("rows", [16, 17, 31, 32])
def test_runs_that_end_anywhere_in_a_block(emulated, rows):
    rig = Rig(two_heads(), "hopper", dtype=torch.bfloat16, tokens=rows, head_dim=64)
    for start in (0, 3, 6):
        check(rig, start, 3)


@pytest.mark.parametrize("parts", [(1, 3, 2), (11,)])
def test_parts_make_the_same_whole(emulated, parts):
    """Eleven parts are more than some reads have blocks."""
    rig = Rig(two_heads(), "hopper", dtype=torch.bfloat16, tokens=20, head_dim=64)
    for start in (0, 3):
        (query, whole), *_ = rig.run(start, 3)
    reads, runs, room = tables_of(rig, parts)
    arguments = (query, rig.pool.k, rig.pool.v, reads, runs, rig.theta, 0, rig.style, rig.scale)
    cut = {"config": SMALL, "kernel": HOPPER, "room": room}
    out, lse = attention(*arguments, **cut, with_lse=True)
    torch.testing.assert_close(out, whole, rtol=2e-2, atol=2e-2)
    arguments = (query, rig.pool.k, rig.pool.v, rig.pool.reads[0], *arguments[4:])
    _, expected = attention(*arguments, config=SMALL, with_lse=True)  # of the portable kernel
    torch.testing.assert_close(lse, expected, rtol=1e-3, atol=1e-3)


def low_operands(rule, rows, batch=1, kv_heads=4):
    """Operands and tables of four heads that all read by one rule, over a cache that has rolled."""
    policy = Policy({"a": parse_rule(rule)}, default="a").bind(layers=1, heads=4)
    chunk = Chunk(3, 9, 3)
    past = held(chunk, 9, 1)
    reads, runs = operand_tables(Planner(policy).plan(chunk), past, rows, batch)
    operands = Operands(past, chunk, rows=rows, batch=batch, dim=64, value_dim=64, kv_heads=kv_heads)
    low = [t.to(torch.bfloat16) for t in (operands.query, operands.key, operands.value)]
    return *low, torch.from_numpy(reads[0]), torch.from_numpy(runs[0]), operands.theta, 1, INTERLEAVED, 0.1


@pytest.mark.parametrize(
    ("rule", "batch", "kv_heads"),
    [
        ("sink(1)@collapse(5) | window(3)", 2, 2),
        ('sink(1)@collapse(5) | stride(3, phase="query", last=1)@clamp(2) | window(1)', 1, 4),
    ],
)
def test_rows_of_the_models_own_cache(emulated, rule, batch, kv_heads):
    """Also where every query frame reads by its own phase."""
    arguments = low_operands(rule, 20, batch, kv_heads)
    out, _ = attention(*arguments, config=SMALL, kernel=HOPPER)
    assert budget_of(*arguments).holds(out)
    assert emulated.launches == 1


def test_reads_without_rows_give_zero(emulated):
    rig = Rig(two_heads(), "hopper", dtype=torch.bfloat16, tokens=16, head_dim=64)
    rig.run(0, 3)
    reads = rig.pool.reads[0].clone()
    reads[0, 5] = 0
    query = torch.randn(1, 48, 2, 64, dtype=torch.bfloat16)
    rest = (reads, rig.pool.runs[0], rig.theta, 0, rig.style, rig.scale)
    out, _ = attention(query, rig.pool.k, rig.pool.v, *rest, config=SMALL, kernel=HOPPER)
    expected, _ = attention(query, rig.pool.k, rig.pool.v, *rest, config=SMALL)
    assert not out[:, : reads[0, 3], reads[0, 1]].any()
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


FAULTS = {
    "a buffer that is never given back": ("mbarrier.arrive(v_empty.index(last), count=1)", "pass"),
    "a query that is written without a fence": ("fence_async_shared()", "pass"),
    "a buffer that is not waited for": ("mbarrier.wait(v_empty.index(stage), before)", "pass"),
    "a run that is taken for one block longer": ("(block * BLOCK_N >= rows) & (i", "(block * BLOCK_N > rows) & (i"),
    "rows behind a run": ("seen[None, :], scores,", "(column >= 0)[None, :], scores,"),
    "a query that is not turned back": ("if next_shift != shift:", "if (next_shift != shift) & (next_shift != 0):"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(emulated, fault):
    tokens = 16 if "run that is" in fault else 20  # runs of whole blocks, or with a rest
    rig = Rig(two_heads(), "hopper", dtype=torch.bfloat16, tokens=tokens, head_dim=64, pairs=20, canonical=True)
    for start in (0, 3):
        check(rig, start, 3)
    emulated.edit = FAULTS[fault]
    with pytest.raises((Fault, AssertionError)):
        check(rig, 6, 3)


# --- refusals ---------------------------------------------------------------------------------------------------


def spec(**changes):
    given = {"dtype": torch.bfloat16, "cache_dtype": torch.bfloat16, "head_dim": 128, "value_dim": 128}
    rest = {"rotation": None, "parts": False, "lse": False, "descriptors": True, "config": SMALL}
    return Spec(**given | rest | changes)


def test_what_the_kernel_does_not_take_is_refused():
    query, key = torch.zeros(1, 48, 2, 64, dtype=torch.bfloat16), torch.zeros(8, 16, 64, dtype=torch.bfloat16)
    check_hopper_operands(query, key, key, 0.1)
    wrong = [
        (query[..., :48], key[..., :48], key, 0.1),
        (query.float(), key.float(), key.float(), 0.1),
        (query, key.half(), key.half(), 0.1),
        (query, key, key, -0.1),
    ]
    for arguments in wrong:
        with pytest.raises(HeadforceError, match=r"HF-KERNEL.*target triton"):
            check_hopper_operands(*arguments)
    tables = torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, 3, dtype=torch.int32)
    rest = (*tables, torch.zeros(0, dtype=torch.float64), 0, INTERLEAVED, 0.1)
    with pytest.raises(HeadforceError, match=r"HF-KERNEL.*sm90"):  # there is no GPU
        find_target("hopper")(query, key, key, *rest)
    check_rows("triton", 1)
    check_rows("hopper", 128)
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        check_rows("hopper", 127)


def test_short_pages_and_odd_strides_are_refused(monkeypatch):
    monkeypatch.setattr(attention_module, "_check_hopper", lambda *_: None)
    query = torch.zeros(1, 48, 2, 64, dtype=torch.bfloat16)
    tables = torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, 3, dtype=torch.int32)
    rest = (*tables, torch.zeros(0, dtype=torch.float64), 0, INTERLEAVED, 0.1)
    short = torch.zeros(8, 8, 64, dtype=torch.bfloat16)
    odd = torch.zeros(1, 48, 2, 66, dtype=torch.bfloat16)[..., :64]
    for keys, says in ((short, "pages of 8 rows"), (odd, "descriptor")):
        with pytest.raises(HeadforceError, match=says):
            attention(query, keys, keys, *rest, config=SMALL, kernel=HOPPER)


def test_the_source_has_what_the_spec_needs():
    optional = {"theta", "pairs", "first_pair", "part_out", "part_lse", "lse", "lse_batch", "lse_head"}
    plain = codegen.kernel_of(HOPPER, spec())
    assert not optional & set(plain.arg_names)
    assert not re.search(r"gl\.(cos|sin|log2)|float64", Path(plain.fn.__code__.co_filename).read_text())
    full = codegen.kernel_of(HOPPER, spec(rotation=INTERLEAVED, parts=True, lse=True))
    assert optional <= set(full.arg_names)
