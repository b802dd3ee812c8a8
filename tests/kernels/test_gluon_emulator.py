"""The emulator on a small attention kernel: right for every seed, and every planted fault is found."""

import pytest
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from tests.kernels.gluon_emulator import Fault, edited, run

tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
LOG2E = gl.constexpr(1.4426950408889634)
D, BM, BN = 64, 128, 64


@gluon.jit
def producer(
    q_desc,
    k_desc,
    v_desc,
    shared,
    head,
    blocks,
    D: gl.constexpr,
    BN: gl.constexpr,
    HALF: gl.constexpr,
    STAGES: gl.constexpr,
):
    q_tile, k_tiles, v_tiles, q_full, k_full, v_full, k_empty, v_empty, row = shared
    mbarrier.expect(q_full, 2 * q_desc.block_type.nbytes)
    for half in gl.static_range(2):
        tma_load(q_desc, [row + half * HALF, 0], q_full, q_tile.index(half))
    for j in range(blocks):
        slot = j % STAGES
        parity = j // STAGES & 1
        mbarrier.wait(k_empty.index(slot), parity ^ 1)
        mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
        tma_load(k_desc, [j * BN, head * D], k_full.index(slot), k_tiles.index(slot))
        mbarrier.wait(v_empty.index(slot), parity ^ 1)
        mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
        tma_load(v_desc, [j * BN, head * D], v_full.index(slot), v_tiles.index(slot))


@gluon.jit
def weigh(scores, peak, weight, first, keys, LAYOUT: gl.constexpr, BN: gl.constexpr):
    column = first + gl.arange(0, BN, gl.SliceLayout(0, LAYOUT))
    scores = gl.where((column < keys)[None, :], scores * LOG2E, float("-inf"))
    higher = gl.maximum(peak, gl.max(scores, 1))
    weights = gl.exp2(scores - higher[:, None])
    fade = gl.exp2(peak - higher)
    return weights.to(gl.bfloat16), fade, higher, weight * fade + gl.sum(weights, 1)


@gluon.jit
def consumer(
    out,
    out_stride,
    rows,
    keys,
    scale,
    shared,
    blocks,
    ME: gl.constexpr,
    D: gl.constexpr,
    BN: gl.constexpr,
    HALF: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Scores of a block are computed while the one before is weighed."""
    q_tile, k_tiles, v_tiles, q_full, k_full, v_full, k_empty, v_empty, row = shared
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])
    TOTAL: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=TOTAL, k_width=2)
    PLAIN: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    q = q_tile.index(ME)
    mbarrier.wait(q_full, 0)
    # Scaled where it lies: 1/8, so that nothing is rounded.
    q.store((q.load(PLAIN) * scale).to(gl.bfloat16))
    fence_async_shared()
    none = gl.zeros([HALF, BN], gl.float32, SCORES)
    total = gl.zeros([HALF, D], gl.float32, TOTAL)
    weight = gl.zeros([HALF], gl.float32, gl.SliceLayout(1, SCORES))
    peak = gl.full([HALF], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    mbarrier.wait(k_full.index(0), 0)
    pending = warpgroup_mma(q, k_tiles.index(0).permute([1, 0]), none, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[pending])
    mbarrier.arrive(k_empty.index(0), count=1)
    for j in range(1, blocks):
        slot = j % STAGES
        mbarrier.wait(k_full.index(slot), j // STAGES & 1)
        pending = warpgroup_mma(q, k_tiles.index(slot).permute([1, 0]), none, use_acc=False, is_async=True)
        weights, fade, peak, weight = weigh(scores, peak, weight, (j - 1) * BN, keys, SCORES, BN)
        total = total * gl.convert_layout(fade, gl.SliceLayout(1, TOTAL))[:, None]
        back = (j - 1) % STAGES
        mbarrier.wait(v_full.index(back), (j - 1) // STAGES & 1)
        sums = warpgroup_mma(gl.convert_layout(weights, WEIGHTS), v_tiles.index(back), total, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[pending])
        mbarrier.arrive(k_empty.index(slot), count=1)
        total = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(v_empty.index(back), count=1)
    last = blocks - 1
    weights, fade, peak, weight = weigh(scores, peak, weight, last * BN, keys, SCORES, BN)
    total = total * gl.convert_layout(fade, gl.SliceLayout(1, TOTAL))[:, None]
    mbarrier.wait(v_full.index(last % STAGES), last // STAGES & 1)
    total = warpgroup_mma(gl.convert_layout(weights, WEIGHTS), v_tiles.index(last % STAGES), total)
    total = total / gl.convert_layout(weight, gl.SliceLayout(1, TOTAL))[:, None]
    at = row + ME * HALF + gl.arange(0, HALF, gl.SliceLayout(1, TOTAL))
    dim = gl.arange(0, D, gl.SliceLayout(0, TOTAL))
    gl.store(out + at[:, None] * out_stride + dim[None, :], total.to(gl.bfloat16), mask=(at < rows)[:, None])


@gluon.jit
def attention(
    q,
    k_desc,
    v_desc,
    out,
    rows,
    keys,
    q_stride,
    out_stride,
    scale,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
):
    HALF: gl.constexpr = BM // 2
    Q: gl.constexpr = gl.NVMMASharedLayout.get_default_for([HALF, D], gl.bfloat16)
    row = gl.program_id(0) * BM
    head = gl.program_id(1)
    blocks = gl.cdiv(keys, BN)
    q_desc = tma.make_tensor_descriptor(q + head * D, [rows, D], [q_stride, 1], [HALF, D], Q)
    q_tile = gl.allocate_shared_memory(gl.bfloat16, [2, HALF, D], Q)
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BN, D], k_desc.layout)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BN, D], v_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(k_full.index(slot), count=1)
        mbarrier.init(v_full.index(slot), count=1)
        mbarrier.init(k_empty.index(slot), count=2)
        mbarrier.init(v_empty.index(slot), count=2)
    shared = (q_tile, k_tiles, v_tiles, q_full, k_full, v_full, k_empty, v_empty, row)
    out = out + head * D
    gl.warp_specialize(
        [
            (consumer, (out, out_stride, rows, keys, scale, shared, blocks, 0, D, BN, HALF, STAGES)),
            (consumer, (out, out_stride, rows, keys, scale, shared, blocks, 1, D, BN, HALF, STAGES)),
            (producer, (q_desc, k_desc, v_desc, shared, head, blocks, D, BN, HALF, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )


@pytest.fixture(autouse=True, scope="module")
def _interpreted():
    """In place of that of the package: the emulator does without Triton's interpreter."""


def case(rows, keys, heads=2):
    torch.manual_seed(rows + keys)
    q, k, v = (torch.randn(n, heads, D).to(torch.bfloat16) for n in (rows, keys, keys))
    # Rows of the caller that the kernel may not touch.
    out = torch.full((rows + 8, heads, D), float("nan"), dtype=torch.bfloat16)
    return q, k, v, out


def attend(kernel, q, k, v, out, seed, stages=2):
    rows, heads, _ = q.shape
    layout = gl.NVMMASharedLayout.get_default_for([BN, D], gl.bfloat16)
    k_desc, v_desc = (TensorDescriptor.from_tensor(x.flatten(1), [BN, D], layout) for x in (k, v))
    sizes = (rows, len(k), q.stride(0), out.stride(0), D**-0.5)
    grid = (-(-rows // BM), heads)
    run(kernel, grid, q, k_desc, v_desc, out[:rows], *sizes, D=D, BM=BM, BN=BN, STAGES=stages, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "keys", "stages"), [(128, 64, 2), (200, 330, 2), (65, 500, 3)])
def test_is_attention(rows, keys, stages, seed):
    q, k, v, out = case(rows, keys)
    attend(attention, q, k, v, out, seed, stages)
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.double().transpose(0, 1) for x in (q, k, v)))
    error = (out[:rows].double() - exact.transpose(0, 1)).abs()
    # Weights and results are rounded to 8 bits.
    assert error.max() <= 2**-8 * exact.abs().max()
    assert out[rows:].isnan().all()


WAIT = "        total = warpgroup_mma_wait(0, deps=[sums])\n"
ARRIVE = "        mbarrier.arrive(v_empty.index(back), count=1)\n"
READS_EARLY = "never written|is over"
FAULTS = {
    "no arrival": ("mbarrier.arrive(v_empty.index(back), count=1)", "pass", "deadlock"),
    "one consumer arrives": ("(v_empty.index(back), count=1)", "(v_empty.index(back), pred=ME == 0)", "deadlock"),
    "one arrival too many": ("(v_empty.index(back), count=1)", "(v_empty.index(back), count=2)", "is over|arrivals"),
    "no expect": ("mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)", "pass", "deadlock"),
    "too few bytes": ("q_full, 2 * q_desc", "q_full, q_desc", READS_EARLY),
    "too many bytes": ("q_full, 2 * q_desc", "q_full, 3 * q_desc", "deadlock"),
    "parity of a full barrier": (
        "wait(v_full.index(back), ",
        "wait(v_full.index(back), 1 ^ ",
        READS_EARLY + "|deadlock",
    ),
    "parity of an empty barrier": ("(k_empty.index(slot), parity ^ 1)", "(k_empty.index(slot), parity)", "deadlock"),
    "parity that is none": ("parity = j // STAGES & 1", "parity = j // STAGES", "parity [2-9-]"),
    "query not waited for": ("mbarrier.wait(q_full, 0)", "pass", READS_EARLY),
    "empty slot not waited for": ("mbarrier.wait(v_empty.index(slot), parity ^ 1)", "pass", "is over"),
    "no fence": ("fence_async_shared()", "pass", "no fence_async_shared after .*q.store"),
    "slot given back early": (WAIT + ARRIVE, ARRIVE + WAIT, "is over: .*warpgroup_mma"),
    "one mma more in flight": ("mma_wait(1, deps=[pending])", "mma_wait(2, deps=[pending])", "UnfinishedMma"),
    "mma not waited for": ("total = warpgroup_mma_wait(0, deps=[sums])", "total = sums", "UnfinishedMma|is over"),
    "slot of another block": ("v_tiles.index(back), total, ", "v_tiles.index(slot), total, ", READS_EARLY),
    "slot that is none": ("slot = j % STAGES\n        parity", "slot = j % STAGES + 1\n        parity", "2:3 of 2"),
    "load that nobody waits for": ("for j in range(blocks):", "for j in range(blocks + 1):", "deadlock|ends and"),
    "one barrier twice": ("mbarrier.init(k_full.index(slot)", "mbarrier.init(k_full.index(0)", "barrier"),
    "no mask": (", mask=(at < rows)[:, None])", ")", "outside of the tensor"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_finds(fault):
    old, new, message = FAULTS[fault]
    kernel = edited(attention, old, new)
    for seed in range(2):
        with pytest.raises((Fault, TypeError), match=message):
            attend(kernel, *case(200, 330), seed)


def test_says_who_waits_for_what():
    kernel = edited(attention, "mbarrier.arrive(v_empty.index(back), count=1)", "pass")
    with pytest.raises(Fault) as caught:
        attend(kernel, *case(128, 330), 0)
    lines = str(caught.value).splitlines()
    assert any("producer 2 waits for parity 0 with 0 phases complete, 2 arrivals and 0 bytes" in x for x in lines)
    assert any("consumer 0 waits for" in x and "_full.index(" in x for x in lines)


@gluon.jit
def write(out, me: gl.constexpr, barrier):
    mbarrier.arrive(barrier, count=1)
    gl.store(out, me)


@gluon.jit
def race(out):
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=2)
    gl.warp_specialize([(write, (out, 0, barrier)), (write, (out, 1, barrier))], [4], [24])


def test_order_is_that_of_the_seed():
    def winner(seed):
        out = torch.empty(1, dtype=torch.int32)
        run(race, 1, out, seed=seed)
        return int(out)

    winners = [winner(seed) for seed in range(8)]
    assert set(winners) == {0, 1}
    assert winners == [winner(seed) for seed in range(8)]


@gluon.jit
def arithmetic(table, floats, out, minus, scale, N: gl.constexpr):
    lane = gl.arange(0, N)
    first = gl.load(table + gl.program_id(0))
    third = first.to(gl.float64) / 3
    wide = gl.load(floats + lane, mask=lane < 3, other=1.0) * third
    base = first
    base += 1
    steps = 0
    while base + steps < 10:
        steps += 1
    gl.store(out, (wide.dtype == gl.float64) + 0)
    gl.store(out + 1, minus // 2)
    gl.store(out + 2, minus % 2)
    gl.store(out + 3, first * 1073741824)
    gl.store(out + 4, steps + first)
    gl.store(out + 5, gl.max(gl.where(lane == 0, float("nan"), lane.to(gl.float32)), 0).to(gl.int32))
    gl.store(out + 6, gl.cdiv(first, 4) + gl.sum(lane, 0))
    gl.store(out + 7, (scale.to(gl.bfloat16) == 1.0) + 0)


def test_counts_as_triton_does():
    """Types widen even where one operand is a scalar, integers overflow and are divided as in C, NaN is no maximum."""
    out = torch.zeros(8, dtype=torch.int32)
    run(arithmetic, 1, torch.tensor([6], dtype=torch.int32), torch.ones(3), out, -3, 1 + 2**-9, N=4)
    assert out.tolist() == [1, -1, -1, -(2**31), 9, 3, 8, 1]
    with pytest.raises(Fault, match="outside of the tensor"):
        run(edited(arithmetic, "lane < 3", "lane < 4"), 1, out[:1], torch.ones(3), out, -3, 1.0, N=4)
