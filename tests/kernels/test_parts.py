"""Runs that are parts of pages, and heads that read nothing at all, in both kernels.

Rows that no run names hold NaN. Tables are made by hand here, so that runs begin and end where planned ones seldom do;
the last tests have them planned.
"""

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.kernels.budget import budget_of
from headforce.kernels.config import Config
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering.attention import HOPPER, PORTABLE, attention
from headforce.lowering.operand_tables import operand_tables
from headforce.lowering.plan import Planner
from headforce.lowering.reach import held
from headforce.lowering.schedule import part_tiles
from headforce.lowering.targets import check_rows
from headforce.policy import Chunk, Policy, parse_rule
from headforce.testing.operands import Operands
from headforce.testing.parts_rig import PartsRig
from headforce.testing.rig import Rig, check
from tests.lowering.test_parts import MERGE, SELECT

from . import test_hopper_attention
from .test_hopper_attention import SMALL

emulated = test_hopper_attention.emulated

PAGE, PAGES, QUERY = 40, 7, 20
"""Rows of a page, pages, and query rows of a frame."""

LONG = [
    # Within a page, to its end, from its begin, over a border, and a whole page; neighbours with one shift and another.
    [(46, 17, 0), (100, 20, 3), (120, 21, 3), (143, 33, -2), (180, 40, 0)],
    [(3, 18, 5), (30, 27, 5), (80, 40, 0), (259, 21, -1)],  # the last one ends with the pool
]
MIXED = [LONG[0], [(46, 6, 0), (53, 6, 3), (79, 1, 3), (97, 13, 0), (199, 2, 2), (240, 34, 2), (279, 1, -4)]]
"""Runs of two heads, in blocks of 16 rows. The kernel for Hopper wants runs of a block at least."""


def test_a_kernel_that_needs_whole_blocks_refuses_shorter_parts():
    """What it would read behind a short run is weighed with zero, but may be NaN."""
    policy = Policy({"a": parse_rule(SELECT), "b": parse_rule(MERGE)}, "a")
    assert (policy.parts_of_frame(1560), Policy({}).parts_of_frame(1560)) == (4, 1)
    check_rows("hopper", 1560 // 4)
    token = Policy({"a": parse_rule(SELECT.replace("segments=4", "segments=token"))}, "a")
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        check_rows("hopper", 1560 // token.parts_of_frame(1560))


QUIET = 1
"""The head that reads nothing."""

CASES = {
    "portable": (PORTABLE, Config(16, 16), MIXED, INTERLEAVED, (1,)),
    "portable, no shifts, in parts": (PORTABLE, Config(16, 16), MIXED, None, (2, 7, 1)),
    "portable, by descriptors, in parts": (PORTABLE, Config(32, 16, descriptors=True), MIXED, SPLIT_HALF, (2, 7, 1)),
    "hopper": (HOPPER, SMALL, LONG, None, (1,)),
    "hopper, shifts, in parts": (HOPPER, SMALL, LONG, INTERLEAVED, (2, 7, 1)),
}


def tables(runs, parts):
    """Reads of three heads and two query frames, and their runs; the second query frame reads all but the first run.

    Returns the tiles that all parts have besides.
    """
    reads, flat, slot, tiles = [], [], 0, 0
    for head, own in enumerate((runs[0], [], runs[1])):
        for frame in range(2):
            first = len(flat) + frame * bool(own)
            cut = parts[len(reads) % len(parts)]
            reads.append([0, head, frame * QUERY, QUERY, first, len(own[frame:]), cut, slot])
            slot, tiles = (slot + cut * QUERY, tiles + cut) if cut > 1 else (slot, tiles)
        flat += own
    return torch.tensor(reads, dtype=torch.int32), torch.tensor(flat, dtype=torch.int32), tiles


def operands(runs, dtype, dim):
    """A query, and pages of keys and values whose rows outside of all runs are NaN."""
    generator = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(1, 2 * QUERY, 3, dim, generator=generator)
    rows = torch.full((2, PAGES * PAGE, dim), torch.nan)
    for row, count, _ in (run for own in runs for run in own):
        rows[:, row : row + count] = torch.randn(2, count, dim, generator=generator)
    return [t.to(dtype) for t in (query, *rows.unflatten(1, (PAGES, PAGE)))]


@pytest.mark.parametrize("case", CASES)
def test_runs_within_pages_and_a_head_that_reads_nothing(emulated, case):
    """Reads that are cut have parts of several blocks, of one and of none."""
    kernel, config, runs, style, parts = CASES[case]
    dtype, dim = (torch.bfloat16, 64) if kernel == HOPPER else (torch.float32, 16)
    given = operands(runs, dtype, dim)
    reads, table, room = tables(runs, parts)
    theta = torch.tensor([0.7, 0.3, 0.1] if style else [], dtype=torch.float64)
    rest = (reads, table, theta, 1, style or INTERLEAVED, dim**-0.5)
    out, lse = attention(*given, *rest, config=config, kernel=kernel, room=room, with_lse=True)
    assert torch.equal(out[:, :, QUIET], torch.zeros_like(out[:, :, QUIET]))
    assert (lse[:, QUIET] == -torch.inf).all()
    assert torch.isfinite(lse[:, [0, 2]]).all()
    assert budget_of(*given, *rest).holds(out)


# --- as they are planned ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "dtype", "rule"),
    [
        (PORTABLE, torch.float32, 'sink(1)@collapse(5) | stride(3, phase="query", last=1) | window(1)'),
        (HOPPER, torch.bfloat16, "sink(1) | window(5)"),
    ],
    ids=[PORTABLE, HOPPER],
)
def test_reads_that_are_cut_as_planned_give_what_they_give_whole(emulated, kernel, dtype, rule):
    """Four heads of three frames, for a device of eleven processors."""
    rules = {"far": parse_rule(rule), "near": parse_rule("window(1)")}
    policy = Policy(rules, "far", heads={0: {"near": (1,)}}).bind(layers=1, heads=4)
    chunk = Chunk(3, 9, 3)
    past = held(chunk, 9, 1)
    operands = Operands(past, chunk, rows=260, dim=64, value_dim=64)
    given = [t.to(dtype) for t in (operands.query, operands.key, operands.value)]
    rest = (operands.theta, 1, INTERLEAVED, 0.1)
    tables = [
        tuple(torch.from_numpy(t[0]) for t in operand_tables(Planner(policy).plan(chunk), past, 260, 1, processors))
        for processors in (0, 11)
    ]
    (whole, _), (cut, _) = tables
    assert set(whole[:, 6].tolist()) == {1}
    assert 1 in cut[cut[:, 3] > 0, 6]
    assert cut[:, 6].max() > 1
    room = part_tiles(len(cut), 4, 3 * 260, 11)
    options = {"config": Config(128, 64, 4, 2, descriptors=True), "kernel": kernel, "with_lse": True}
    expected, expected_lse = attention(*given, *tables[0], *rest, **options)
    out, lse = attention(*given, *tables[1], *rest, **options, room=room)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out, expected, rtol=near, atol=near)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [SELECT.replace("=model)", "=model)@collapse(4)"), MERGE], ids=["select", "merge"])
def test_stores_that_keep_parts(rule):
    rig = PartsRig(rule, target="triton", dtype=torch.float32, layers=1, heads=2)
    for start in range(0, 12, 3):
        rig.check(start, 3)
    assert (rig.pool.runs[0][:, 1] % rig.tokens).any()  # some run is no whole page


@pytest.mark.parametrize("target", ["triton", "hopper"])
def test_muted_heads(emulated, target):
    """One head of a layer, and all heads of another."""
    rules = {"quiet": parse_rule("mute()"), "loud": parse_rule("sink(1) | window(1)")}
    policy = Policy(rules, default="loud", heads={0: {"quiet": (1,)}, 1: {"quiet": (0, 1)}}).bind(layers=2, heads=2)
    rig = Rig(policy, target, dtype=torch.bfloat16, tokens=16, head_dim=64)
    for start in (0, 3, 6):
        check(rig, start, 3)
        for layer, (_, out) in enumerate(rig.run(start, 3)):
            assert out[:, :, 0].any() == (layer == 0)
            assert torch.equal(out[:, :, 1], torch.zeros_like(out[:, :, 1]))
