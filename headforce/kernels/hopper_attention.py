"""The kernel of ragged attention for Hopper: one warp loads, two groups of four warps compute.

What it computes, its tables and its grid are those of `kernels.ragged_attention`; what differs is who does what. The
loading warp walks over the blocks of the program's runs and fetches keys and values by tensor descriptor (TMA) into
rings of `STAGES` buffers. Each computing group has half of the query rows. It starts the scores of the next block
before it takes the exponentials of the last one, so matrix units and exponentials work side by side.

The last block of a run begins where it ends with the run, and rows that the block before has read are hidden: memory
behind a run is not touched. Only a run shorter than a block reaches behind itself, where values that are not finite
would show although their weights are zero. So every run has to be at least as long as a block: pages, and the parts of
pages that stores keep.

Buffers change hands by barriers in shared memory. `full` barriers count the bytes that arrive; `empty` ones count the
two groups, which let go of a buffer once the product that reads it was waited for. The n-th use of a buffer waits for
phase n of `full`, and for phase n - 1 of `empty`, which for n = 0 is taken as over.

This file is a template, see `lowering.codegen`. Gluon cannot be interpreted: `tests/kernels/gluon_emulator.py` runs it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# --- settings: see `kernels.spec.Spec.settings`
D = gl.constexpr(128)  # width of a key
DV = gl.constexpr(128)  # width of a value
BLOCK_M = gl.constexpr(128)  # query rows of a tile, half of them for each group
BLOCK_N = gl.constexpr(128)  # rows of a block of keys
STAGES = gl.constexpr(2)  # buffers of keys, and of values
ROTATED = gl.constexpr(True)  # runs may be shifted
SPLIT_HALF = gl.constexpr(False)  # pairs of RoPE are halves apart, not neighbours
PARTS = gl.constexpr(True)  # reads may be cut into parts
LSE = gl.constexpr(True)
# --- end of settings

LN2 = gl.constexpr(0.6931471805599453)
TWO_PI = gl.constexpr(6.283185307179586)
PER_RADIAN = gl.constexpr(0.15915494309189535)  # turns
HALF = gl.constexpr(BLOCK_M.value // 2)  # query rows of a group
SEARCH = gl.constexpr(32)  # reads that are looked at together: one for each thread of a warp
SLICE = gl.constexpr(16)  # query rows that are turned at a time, to be easy on registers

load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # the name of triton 3.6


def tile_layout(block, dtype):
    """How a block [rows, columns] of a torch dtype lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for(list(block), getattr(gl, str(dtype).removeprefix("torch.")))


@gluon.jit
def first_block(runs, first_run, begin):
    """The run of block `begin`, counted from the first run on, and the block's place in it."""
    run = first_run
    block = begin
    blocks = gl.cdiv(gl.load(runs + run * 3 + 1), BLOCK_N)
    while block >= blocks:
        block -= blocks
        run += 1
        blocks = gl.cdiv(gl.load(runs + run * 3 + 1), BLOCK_N)
    return run, block


@gluon.jit
def block_start(rows, block):
    """Where a block of a run of `rows` rows begins: the last one ends with the run, if the run is long enough."""
    return gl.minimum(block * BLOCK_N, gl.maximum(rows - BLOCK_N, 0))


@gluon.jit
def producer(key_tiles, value_tiles, rings, walk, columns):
    """Loads the keys and values of the blocks of `walk`."""
    k_smem, v_smem, k_full, k_empty, v_full, v_empty = rings
    runs, run, block, count = walk
    key_top, key_column, value_top, value_column = columns
    row = gl.load(runs + run * 3)
    rows = gl.load(runs + run * 3 + 1)
    for i in range(count):
        stage = i % STAGES
        before = ((i // STAGES) & 1) ^ 1
        at = row + block_start(rows, block)
        mbarrier.wait(k_empty.index(stage), before)
        mbarrier.expect(k_full.index(stage), key_tiles.block_type.nbytes)
        load_tile(key_tiles, [key_top + at, key_column], k_full.index(stage), k_smem.index(stage))
        mbarrier.wait(v_empty.index(stage), before)
        mbarrier.expect(v_full.index(stage), value_tiles.block_type.nbytes)
        load_tile(value_tiles, [value_top + at, value_column], v_full.index(stage), v_smem.index(stage))
        block += 1
        if (block * BLOCK_N >= rows) & (i + 1 < count):
            run += 1
            block = 0
            row = gl.load(runs + run * 3)
            rows = gl.load(runs + run * 3 + 1)


@gluon.jit
def channels(dim, pairs, first_pair):
    """Of every channel: whether it leads its pair, the other one of the pair, the pair's rate, and whether it turns."""
    if SPLIT_HALF:
        leads = dim < D // 2
        other = gl.where(leads, dim + D // 2, dim - D // 2)
        pair = gl.where(leads, dim, dim - D // 2) - first_pair
    else:
        leads = dim % 2 == 0
        other = dim ^ 1
        pair = dim // 2 - first_pair
    return leads, other, pair, (pair >= 0) & (pair < pairs)


@gluon.jit
def store_angles(shift, turning):
    """Cosine and signed sine of every channel, for keys that are moved by `shift` frames; each by one thread."""
    theta, pairs, first_pair, cosines, sines = turning
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    leads, _, pair, turns = channels(gl.arange(0, D, flat), pairs, first_pair)
    rate = gl.load(theta + pair, mask=turns, other=0.0)
    # Brought back into one turn before it becomes float32.
    turn = rate * (shift.to(gl.float64) * PER_RADIAN)
    angle = ((turn - gl.floor(turn)) * TWO_PI).to(gl.float32)
    sine = gl.sin(angle)
    cosines.store(gl.cos(angle))
    sines.store(gl.where(leads, sine, -sine))


@gluon.jit
def store_query(q_smem, first, stride, rows, shift, turning):
    """Puts this group's rows of the query into shared memory, as keys see them that are moved by `shift` frames."""
    if ROTATED:
        if shift != 0:
            store_turned(q_smem, first, stride, rows, shift, turning)
        else:
            store_tile(q_smem, first, stride, rows)
    else:
        store_tile(q_smem, first, stride, rows)
    fence_async_shared()


@gluon.jit
def store_tile(q_smem, first, stride, rows):
    """The rows as they are."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    dim = gl.arange(0, D, gl.SliceLayout(0, layout))
    for part in gl.static_range(HALF // SLICE):
        row = part * SLICE + gl.arange(0, SLICE, gl.SliceLayout(1, layout))
        tile = gl.load(first + row[:, None] * stride + dim[None, :], mask=(row < rows)[:, None], other=0.0)
        q_smem.slice(part * SLICE, SLICE, dim=0).store(tile)


@gluon.jit
def store_turned(q_smem, first, stride, rows, shift, turning):
    """The rows turned: <q, turn(k, shift)> = <turn(q, -shift), k>; see `kernels.ragged_attention.write_turned`."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    dim = gl.arange(0, D, gl.SliceLayout(0, layout))
    store_angles(shift, turning)
    _, pairs, first_pair, cosines, sines = turning
    cosine = cosines.load(gl.SliceLayout(0, layout))
    sine = sines.load(gl.SliceLayout(0, layout))
    _, other, _, _ = channels(dim, pairs, first_pair)
    for part in gl.static_range(HALF // SLICE):
        row = part * SLICE + gl.arange(0, SLICE, gl.SliceLayout(1, layout))
        there = (row < rows)[:, None]
        at = first + row[:, None] * stride
        tile = gl.load(at + dim[None, :], mask=there, other=0.0)
        if SPLIT_HALF:
            partner = gl.load(at + other[None, :], mask=there, other=0.0)
        else:
            even, odd = gl.split(gl.reshape(tile, [SLICE, D // 2, 2]))
            partner = gl.convert_layout(gl.reshape(gl.join(odd, even), [SLICE, D]), layout)
        turned = tile.to(gl.float32) * cosine[None, :] + partner.to(gl.float32) * sine[None, :]
        q_smem.slice(part * SLICE, SLICE, dim=0).store(turned.to(tile.dtype))


@gluon.jit
def weigh(scores, weight, highest, scale, rows, block):
    """Online softmax of one block: its weights, how the past fades, and the new sums."""
    if (block + 1) * BLOCK_N > rows:
        # The last block: behind the run, or in front of it, as it was moved to end with the run.
        column = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scores.type.layout)) + block_start(rows, block)
        seen = (column >= block * BLOCK_N) & (column < rows)
        scores = gl.where(seen[None, :], scores, float("-inf"))
    peak = gl.maximum(highest, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - peak[:, None])
    fade = gl.exp2(highest - peak)
    return weights, fade, weight * fade + gl.sum(weights, 1), peak


@gluon.jit
def consumer(q_smem, rings, walk, asked, turning, answer, GROUP: gl.constexpr):
    """Attention of one group's query rows over the blocks of `walk`, one at least."""
    k_smem, v_smem, k_full, k_empty, v_full, v_empty = rings
    runs, run, block, count = walk
    first_query, query_row, rows_of_query, scale = asked
    first_out, out_row, first_lse, first_part_out, first_part_lse, parts = answer
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    total_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DV, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, total_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, total_layout)
    dtype: gl.constexpr = q_smem.dtype
    zero = gl.zeros([HALF, BLOCK_N], gl.float32, score_layout)
    total = gl.zeros([HALF, DV], gl.float32, total_layout)
    highest = gl.full([HALF], float("-inf"), gl.float32, gl.SliceLayout(1, score_layout))
    weight = gl.full([HALF], 0.0, gl.float32, gl.SliceLayout(1, score_layout))

    own_query = first_query + GROUP * HALF * query_row
    own_rows = rows_of_query - GROUP * HALF
    query = q_smem.index(GROUP)
    rows = gl.load(runs + run * 3 + 1)
    shift = gl.load(runs + run * 3 + 2)
    store_query(query, own_query, query_row, own_rows, shift, turning)

    mbarrier.wait(k_full.index(0), 0)
    started = warpgroup_mma(query, k_smem.index(0).permute([1, 0]), zero, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[started])
    mbarrier.arrive(k_empty.index(0), count=1)
    for i in range(1, count):
        # `scores` are those of block i - 1; on to block i.
        last_rows = rows
        last_block = block
        block += 1
        if block * BLOCK_N >= rows:
            run += 1
            block = 0
            rows = gl.load(runs + run * 3 + 1)
            if ROTATED:
                shift = gl.load(runs + run * 3 + 2)
                if shift != gl.load(runs + run * 3 - 1):  # that of the run before
                    store_query(query, own_query, query_row, own_rows, shift, turning)
        stage = i % STAGES
        last = (i - 1) % STAGES
        mbarrier.wait(k_full.index(stage), (i // STAGES) & 1)
        started = warpgroup_mma(query, k_smem.index(stage).permute([1, 0]), zero, use_acc=False, is_async=True)
        weights, fade, weight, highest = weigh(scores, weight, highest, scale, last_rows, last_block)
        total = total * gl.convert_layout(fade, row_layout)[:, None]
        operand = gl.convert_layout(weights.to(dtype), weight_layout)
        mbarrier.wait(v_full.index(last), ((i - 1) // STAGES) & 1)
        adding = warpgroup_mma(operand, v_smem.index(last), total, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[started])
        mbarrier.arrive(k_empty.index(stage), count=1)
        total = warpgroup_mma_wait(0, deps=[adding])
        mbarrier.arrive(v_empty.index(last), count=1)
    weights, fade, weight, highest = weigh(scores, weight, highest, scale, rows, block)
    total = total * gl.convert_layout(fade, row_layout)[:, None]
    last = (count - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((count - 1) // STAGES) & 1)
    adding = warpgroup_mma(
        gl.convert_layout(weights.to(dtype), weight_layout), v_smem.index(last), total, is_async=True
    )
    total = warpgroup_mma_wait(0, deps=[adding])

    log_weight = gl.convert_layout(highest + gl.log2(weight), row_layout)
    total = total / gl.convert_layout(weight, row_layout)[:, None]
    row = gl.arange(0, HALF, row_layout)
    dim = gl.arange(0, DV, gl.SliceLayout(0, total_layout))
    there = row < own_rows
    row += GROUP * HALF
    if PARTS:
        if parts > 1:
            gl.store(first_part_out + row[:, None] * DV + dim[None, :], total, mask=there[:, None])
            gl.store(first_part_lse + row, log_weight, mask=there)
        else:
            gl.store(first_out + row[:, None] * out_row + dim[None, :], total.to(dtype), mask=there[:, None])
            if LSE:
                gl.store(first_lse + row, log_weight * LN2, mask=there)
    else:
        gl.store(first_out + row[:, None] * out_row + dim[None, :], total.to(dtype), mask=there[:, None])
        if LSE:
            gl.store(first_lse + row, log_weight * LN2, mask=there)


@gluon.jit
def add(a, b):
    return a + b


@gluon.jit
def find_read(reads, read_count, program):
    """The read of a program, and its number among those of the read; see `kernels.ragged_attention.find_read`."""
    flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    read = gl.to_tensor(0)
    before = gl.to_tensor(0)  # programs of the reads in front
    end = gl.to_tensor(0)
    for first in range(0, read_count, SEARCH):
        some = first + gl.arange(0, SEARCH, flat)
        programs = gl.cdiv(gl.load(reads + some * 8 + 3, mask=some < read_count, other=0), BLOCK_M)
        if PARTS:
            programs *= gl.load(reads + some * 8 + 6, mask=some < read_count, other=0)
        ends = end + gl.associative_scan(programs, 0, add)
        end = gl.max(ends, 0)
        passed = ends <= program
        read += gl.sum(passed.to(gl.int32), 0)
        before = gl.maximum(before, gl.max(gl.where(passed, ends, 0), 0))
    return read, program - before


@gluon.jit
def hopper_attention(
    query,
    key_tiles,  # descriptors of [rows, row stride], see `lowering.tiles`
    value_tiles,
    out,
    lse,
    part_out,
    part_lse,
    reads,
    runs,
    theta,
    query_batch,
    query_row,
    query_head,
    key_batch,
    key_row,
    key_head,
    value_batch,
    value_row,
    value_head,
    out_batch,
    out_row,
    out_head,
    lse_batch,
    lse_head,
    read_count,
    group,  # query heads that share a K/V head
    pairs,
    first_pair,
    scale,  # on scores, times log2(e)
):
    """Grid: (at least one for each tile of each part of each read)."""
    its_read, number = find_read(reads, read_count, gl.program_id(0))
    if its_read >= read_count:
        return
    read = reads + its_read * 8
    rows_of_query = gl.load(read + 3)
    first_row = number * BLOCK_M
    part = 0
    parts = 1
    if PARTS:
        # All tiles of a part follow each other, as they read the same keys.
        tiles = gl.cdiv(rows_of_query, BLOCK_M)
        part = number // tiles
        first_row = (number % tiles) * BLOCK_M
        parts = gl.load(read + 6)
    rows_of_query -= first_row
    first_run = gl.load(read + 4)
    blocks = gl.to_tensor(0)
    for r in range(first_run, first_run + gl.load(read + 5)):
        blocks += gl.cdiv(gl.load(runs + r * 3 + 1), BLOCK_N)
    begin = 0
    count = blocks
    if PARTS:
        # This program's share of the blocks of all runs.
        begin = (blocks.to(gl.int64) * part // parts).to(gl.int32)
        count = (blocks.to(gl.int64) * (part + 1) // parts).to(gl.int32) - begin
    # A part without rows says so by its lse.
    batch = gl.load(read).to(gl.int64)
    head = gl.load(read + 1).to(gl.int64)
    query_at = gl.load(read + 2).to(gl.int64) + first_row
    first_out = out + batch * out_batch + head * out_head + query_at * out_row
    first_lse = first_out
    first_part_out = first_out
    first_part_lse = first_out
    if LSE:
        first_lse = lse + batch * lse_batch + head * lse_head + query_at
    if PARTS:
        slot = (gl.load(read + 7) + part * gl.load(read + 3) + first_row).to(gl.int64)
        first_part_out = part_out + slot * DV
        first_part_lse = part_lse + slot
    if count == 0:
        flat: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        row = gl.arange(0, BLOCK_M, flat)
        nothing = gl.full([BLOCK_M], float("-inf"), gl.float32, flat)
        if PARTS:
            gl.store(first_part_lse + row, nothing, mask=(row < rows_of_query) & (parts > 1))
        if LSE:
            gl.store(first_lse + row, nothing, mask=(row < rows_of_query) & (parts == 1))
        return

    kv_head = head // group
    key_at = batch * key_batch + kv_head * key_head
    value_at = batch * value_batch + kv_head * value_head
    dtype: gl.constexpr = query.dtype.element_ty
    query_smem: gl.constexpr = gl.NVMMASharedLayout.get_default_for([HALF, D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [2, HALF, D], query_smem)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], key_tiles.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, DV], value_tiles.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_empty.index(stage), count=2)

    run, block = first_block(runs, first_run, begin)
    first_query = query + batch * query_batch + head * query_head + query_at * query_row
    rings = (k_smem, v_smem, k_full, k_empty, v_full, v_empty)
    walk = (runs, run, block, count)
    asked = (first_query, query_row, rows_of_query, scale)
    answer = (first_out, out_row, first_lse, first_part_out, first_part_lse, parts)
    columns = (
        (key_at // key_row).to(gl.int32),
        (key_at % key_row).to(gl.int32),
        (value_at // value_row).to(gl.int32),
        (value_at % value_row).to(gl.int32),
    )
    turning = ()
    other_turning = ()
    if ROTATED:
        angles = gl.allocate_shared_memory(gl.float32, [4, D], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        turning = (theta, pairs, first_pair, angles.index(0), angles.index(1))
        other_turning = (theta, pairs, first_pair, angles.index(2), angles.index(3))
    gl.warp_specialize(
        [
            (consumer, (q_smem, rings, walk, asked, turning, answer, 0)),
            (consumer, (q_smem, rings, walk, asked, other_turning, answer, 1)),
            (producer, (key_tiles, value_tiles, rings, walk, columns)),
        ],
        [4, 1],
        [240, 24],
    )
