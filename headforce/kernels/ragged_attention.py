"""The portable kernel of ragged attention: plain Triton, driven by the tables, one launch for all heads of a layer.

A program takes one tile of query rows of one read and walks over the runs of that read, whole blocks of keys first and
then what is left of the run. Where a run is shifted the query is turned the other way, once for the run, so keys are
never touched. A read may be cut into parts, each with a program of its own; `kernels.combine_parts` puts them together.
What the tables mean is in `kernels.reference`; rows that no run names are never read.

This file is a template and a working kernel: `lowering.codegen` writes a copy for every spec, with the settings of the
spec, without the branches that it does not take, and without the arguments that are then not used.
"""

# No `from __future__ import annotations`: Triton looks at the annotations of the arguments.

import triton
import triton.language as tl

# --- settings: see `kernels.spec.Spec.settings`
D = tl.constexpr(128)  # width of a key
DV = tl.constexpr(128)  # width of a value
BLOCK_D = tl.constexpr(128)  # the next power of two
BLOCK_DV = tl.constexpr(128)
BLOCK_M = tl.constexpr(128)  # query rows of a tile
BLOCK_N = tl.constexpr(64)  # rows of a block of keys
STAGES = tl.constexpr(3)  # blocks under way
PADDED = tl.constexpr(False)  # a width is no power of two
ROTATED = tl.constexpr(True)  # runs may be shifted
SPLIT_HALF = tl.constexpr(False)  # pairs of RoPE are halves apart, not neighbours
PARTS = tl.constexpr(True)  # reads may be cut into parts
LSE = tl.constexpr(True)
CONVERTED = tl.constexpr(False)  # the cache has another dtype than the query
DESCRIPTORS = tl.constexpr(False)  # whole blocks come by tensor descriptors
PRECISION = tl.constexpr("tf32")  # of products of float32; "ieee" is full float32
# --- end of settings

LN2 = tl.constexpr(0.6931471805599453)
TWO_PI = tl.constexpr(6.283185307179586)
PER_RADIAN = tl.constexpr(0.15915494309189535)  # turns
SEARCH = tl.constexpr(32)  # reads that are looked at together: one for each thread of a warp, see `find_read`


@triton.jit
def cosine_and_sine(turns):
    """Of an angle in turns, float64: brought to an eighth of a turn before it becomes float32, right to 1e-7.

    The functions of the GPU's library take any angle, and carry a table and hundreds of instructions to do so.
    """
    quarter = tl.floor(turns * 4.0 + 0.5)
    x = ((turns - quarter * 0.25) * TWO_PI).to(tl.float32)
    y = x * x
    sine = x * (1.0 + y * (-1.0 / 6.0 + y * (1.0 / 120.0 + y * (-1.0 / 5040.0 + y * (1.0 / 362880.0)))))
    cosine = 1.0 + y * (-0.5 + y * (1.0 / 24.0 + y * (-1.0 / 720.0 + y * (1.0 / 40320.0))))
    quadrant = (quarter - tl.floor(quarter * 0.25) * 4.0).to(tl.int32)
    odd = (quadrant == 1) | (quadrant == 3)
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -c, c), tl.where(quadrant >= 2, -s, s)


@triton.jit
def channels(pairs, first_pair):
    """Of every channel: whether it leads its pair, the pair's rate, and whether it turns."""
    dim = tl.arange(0, BLOCK_D)
    if SPLIT_HALF:
        leads = dim < D // 2
        pair = tl.where(leads, dim, dim - D // 2) - first_pair
    else:
        leads = dim % 2 == 0
        pair = dim // 2 - first_pair
    return leads, pair, (pair >= 0) & (pair < pairs) & (dim < D)


@triton.jit
def angles_of_program(angles):
    """Where this program keeps its angles."""
    return angles + tl.program_id(0) * (2 * BLOCK_D)


@triton.jit
def write_angles(angles, shift, theta, pairs, first_pair):
    """Cosine and signed sine of every channel, for keys that are moved by `shift` frames.

    They go through memory because every thread needs all of a row's, as an operand of a product lies: it would compute
    some 64 angles by itself, in float64, where it now computes one and loads 64.
    """
    leads, pair, turns = channels(pairs, first_pair)
    rate = tl.load(theta + pair, mask=turns, other=0.0)
    cosine, sine = cosine_and_sine(rate * (shift.to(tl.float64) * PER_RADIAN))
    at = angles + tl.arange(0, BLOCK_D)
    tl.debug_barrier()  # the angles before may still be read
    tl.store(at, cosine)
    tl.store(at + BLOCK_D, tl.where(leads, sine, -sine))
    tl.debug_barrier()


@triton.jit
def load_tile(rows_at, row, rows):
    """[BLOCK_M, BLOCK_D] of the rows that begin at `rows_at` [BLOCK_M, 1]; what is not there is zero."""
    dim = tl.arange(0, BLOCK_D)[None, :]
    there = (row < rows)[:, None]
    if PADDED:
        there = there & (dim < D)
    return tl.load(rows_at + dim, mask=there, other=0.0)


@triton.jit
def write_turned(
    to,  # [BLOCK_M, BLOCK_D], of this program
    rows_at,  # [BLOCK_M, 1], where the rows of the query begin
    row,
    rows,  # that there are
    angles,  # of this program, see `write_angles`
):
    """The query as keys see it that are moved: <q, turn(k, shift)> = <turn(q, -shift), k>.

    It goes through memory because Triton keeps an operand of a product in shared memory if it was loaded, and in
    registers if it was computed: every round would fetch it from shared memory again, and there are not enough.
    """
    if SPLIT_HALF:
        pair = tl.arange(0, BLOCK_D // 2)
        cosine = tl.load(angles + pair)[None, :]
        sine = tl.load(angles + BLOCK_D + pair)[None, :]
        there = (row < rows)[:, None]
        if PADDED:
            there = there & (pair < D // 2)[None, :]
        a = tl.load(rows_at + pair[None, :], mask=there, other=0.0)
        b = tl.load(rows_at + D // 2 + pair[None, :], mask=there, other=0.0)
        place = to + (row[:, None] * BLOCK_D + pair[None, :])
        tl.store(place, (a.to(tl.float32) * cosine + b.to(tl.float32) * sine).to(a.dtype), mask=there)
        tl.store(place + D // 2, (b.to(tl.float32) * cosine - a.to(tl.float32) * sine).to(a.dtype), mask=there)
    else:
        dim = tl.arange(0, BLOCK_D)
        cosine = tl.load(angles + dim)[None, :]
        sine = tl.load(angles + BLOCK_D + dim)[None, :]
        tile = load_tile(rows_at, row, rows)
        even, odd = tl.split(tl.reshape(tile, (BLOCK_M, BLOCK_D // 2, 2)))
        partner = tl.reshape(tl.join(odd, even), (BLOCK_M, BLOCK_D))
        turned = tile.to(tl.float32) * cosine + partner.to(tl.float32) * sine
        tl.store(to + (row[:, None] * BLOCK_D + dim[None, :]), turned.to(tile.dtype))
    tl.debug_barrier()


@triton.jit
def load_rows(first, stride, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEIGHT: tl.constexpr, WHOLE: tl.constexpr):
    """[HEIGHT, BLOCK] from `rows` rows of WIDTH; what is not there is zero. With WHOLE, all rows are there."""
    row = tl.arange(0, HEIGHT)[:, None]
    dim = tl.arange(0, BLOCK)[None, :]
    at = first + (row * stride + dim)
    there = row < rows
    if PADDED:
        there = (dim < WIDTH) if WHOLE else there & (dim < WIDTH)
        block = tl.load(at, mask=there, other=0.0)
    else:
        block = tl.load(at) if WHOLE else tl.load(at, mask=there, other=0.0)
    return block


@triton.jit
def attend(
    tile,
    key,
    value,
    total,  # [BLOCK_M, BLOCK_DV] weighted values so far
    weight,  # [BLOCK_M] sum of the weights
    highest,  # [BLOCK_M] largest score, in powers of two
    rows,  # of the block that there are
    scale,
    WHOLE: tl.constexpr,
):
    """One block of keys: online softmax in float32. The scale is positive, so the largest score is largest without it,
    and the product is part of what the difference takes anyway."""
    if CONVERTED:
        key = key.to(tile.dtype)
        value = value.to(tile.dtype)
    scores = tl.dot(tile, tl.trans(key), input_precision=PRECISION)
    if not WHOLE:
        scores = tl.where((tl.arange(0, BLOCK_N) < rows)[None, :], scores, float("-inf"))
    peak = tl.maximum(highest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - peak[:, None])
    fade = tl.exp2(highest - peak)
    total = tl.dot(weights.to(value.dtype), value, total * fade[:, None], input_precision=PRECISION)
    return total, weight * fade + tl.sum(weights, 1), peak


@triton.jit
def find_read(reads, read_count, program):
    """The read of a program, and its number among the programs of that read: one for each tile of each part.

    Programs are counted in the order of the reads. Behind the last one there is no read: `read_count` or more.
    """
    # What a warp adds up by itself is known to be the same for all of its threads. Of sums over several warps that is
    # not known, and loops and loads that depend on the read would be made for threads that differ.
    read = 0
    before = 0  # programs of the reads in front
    end = 0
    for first in tl.range(0, read_count, SEARCH):
        some = first + tl.arange(0, SEARCH)
        programs = tl.cdiv(tl.load(reads + some * 8 + 3, mask=some < read_count, other=0), BLOCK_M)
        if PARTS:
            programs *= tl.load(reads + some * 8 + 6, mask=some < read_count, other=0)
        ends = end + tl.cumsum(programs, 0)
        end = tl.max(ends, 0)
        passed = ends <= program
        read += tl.sum(passed.to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(passed, ends, 0), 0))
    return read, program - before


@triton.jit
def ragged_attention(
    query,
    key,
    value,
    key_tiles,  # descriptors of [rows, row stride], see `lowering.tiles`
    value_tiles,
    out,
    lse,
    part_out,
    part_lse,
    reads,
    runs,
    theta,
    angles,  # [programs, 2, BLOCK_D], for each program to use
    turned,  # [programs, BLOCK_M, BLOCK_D], likewise
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
    scale,  # on scores, times log2(e); positive
):
    """Grid: (at least one for each tile of each part of each read)."""
    its_read, number = find_read(reads, read_count, tl.program_id(0))
    if its_read >= read_count:
        return
    read = reads + its_read * 8
    rows_of_query = tl.load(read + 3)
    first_row = number * BLOCK_M
    if PARTS:
        # All tiles of a part follow each other, as they read the same keys.
        tiles = tl.cdiv(rows_of_query, BLOCK_M)
        part = number // tiles
        first_row = (number % tiles) * BLOCK_M
        parts = tl.load(read + 6)
    batch = tl.load(read).to(tl.int64)
    head = tl.load(read + 1).to(tl.int64)
    kv_head = head // group
    query_at = tl.load(read + 2).to(tl.int64) + first_row
    row = tl.arange(0, BLOCK_M)
    rows_left = rows_of_query - first_row
    first_query = query + batch * query_batch + head * query_head + query_at * query_row
    keys = key + batch * key_batch + kv_head * key_head
    values = value + batch * value_batch + kv_head * value_head
    if DESCRIPTORS:
        # The head's column among the rows of all batch rows, for which offsets were checked before the launch.
        key_at = batch * key_batch + kv_head * key_head
        value_at = batch * value_batch + kv_head * value_head
        key_top = (key_at // key_row).to(tl.int32)
        key_column = (key_at % key_row).to(tl.int32)
        value_top = (value_at // value_row).to(tl.int32)
        value_column = (value_at % value_row).to(tl.int32)
    first_run = tl.load(read + 4)
    last_run = first_run + tl.load(read + 5)

    if PARTS:
        # This program's share of the blocks of all runs.
        blocks = 0
        for r in tl.range(first_run, last_run):
            blocks += tl.cdiv(tl.load(runs + r * 3 + 1), BLOCK_N)
        begin = (blocks.to(tl.int64) * part // parts).to(tl.int32)
        end = (blocks.to(tl.int64) * (part + 1) // parts).to(tl.int32)

    total = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    if ROTATED:
        last_shift = 0
        rows_at = first_query + row[:, None] * query_row
        turned += tl.program_id(0).to(tl.int64) * (BLOCK_M * BLOCK_D)
    else:
        tile = load_tile(first_query + row[:, None] * query_row, row, rows_left)
    for r in tl.range(first_run, last_run):
        run_row = tl.load(runs + r * 3).to(tl.int64)
        run_rows = tl.load(runs + r * 3 + 1)
        whole = run_rows // BLOCK_N
        low = 0
        high = whole
        rest = run_rows - whole * BLOCK_N
        if PARTS:
            low = tl.maximum(begin, 0)
            high = tl.minimum(end, whole)
            if (begin > whole) | (end <= whole):
                rest = 0
            count = tl.cdiv(run_rows, BLOCK_N)
            begin -= count
            end -= count
        if ROTATED:
            shift = tl.load(runs + r * 3 + 2)
            if shift != last_shift:
                rows_at = first_query + row[:, None] * query_row
                if shift != 0:
                    own_angles = angles_of_program(angles)
                    write_angles(own_angles, shift, theta, pairs, first_pair)
                    write_turned(turned, rows_at, row, rows_left, own_angles)
                    rows_at = turned + row[:, None] * BLOCK_D
                last_shift = shift
            tile = load_tile(rows_at, row, rows_left)
        for block in tl.range(low, high, num_stages=STAGES):
            at = run_row + block * BLOCK_N
            if DESCRIPTORS:
                k = key_tiles.load([key_top + at.to(tl.int32), key_column])
                v = value_tiles.load([value_top + at.to(tl.int32), value_column])
            else:
                k = load_rows(keys + at * key_row, key_row, BLOCK_N, D, BLOCK_D, BLOCK_N, True)
                v = load_rows(values + at * value_row, value_row, BLOCK_N, DV, BLOCK_DV, BLOCK_N, True)
            total, weight, highest = attend(tile, k, v, total, weight, highest, BLOCK_N, scale, True)
        if rest > 0:
            at = run_row + whole * BLOCK_N
            k = load_rows(keys + at * key_row, key_row, rest, D, BLOCK_D, BLOCK_N, False)
            v = load_rows(values + at * value_row, value_row, rest, DV, BLOCK_DV, BLOCK_N, False)
            total, weight, highest = attend(tile, k, v, total, weight, highest, rest, scale, False)

    # A read without rows gives zero.
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    log_weight = highest + tl.log2(weight)
    row_mask = row < rows_left
    value_dim = tl.arange(0, BLOCK_DV)
    if PARTS:
        if parts > 1:
            slot_row = (tl.load(read + 7) + part * rows_of_query + first_row).to(tl.int64) + row
            tl.store(part_out + slot_row[:, None] * BLOCK_DV + value_dim[None, :], total, mask=row_mask[:, None])
            tl.store(part_lse + slot_row, log_weight, mask=row_mask)
            return
    out_at = out + batch * out_batch + head * out_head + (query_at + row)[:, None] * out_row + value_dim[None, :]
    there = row_mask[:, None]
    if PADDED:
        there = there & (value_dim < DV)[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=there)
    if LSE:
        tl.store(lse + batch * lse_batch + head * lse_head + query_at + row, log_weight * LN2, mask=row_mask)
