"""The portable kernel of ragged attention: plain Triton, driven by the tables, one launch for all heads of a layer.

A program takes one tile of query rows of one read and walks over the runs of that read, whole blocks of keys first and
then what is left of the run. Where a run is shifted the query is turned the other way, once for the run, so keys are
never touched. A read may be cut into parts, each with a program of its own; `combine_parts` puts them together in a
fixed order. What the tables mean is in `kernels.reference`; rows that no run names are never read.

Names in capitals are settled before compilation.
"""

# No `from __future__ import annotations`: Triton looks at the annotations of the arguments.

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
TWO_PI = tl.constexpr(6.283185307179586)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def query_tile(
    first,  # where the first row of the tile begins
    stride,  # elements from one row to the next
    row_mask,  # [BM, 1]
    shift,  # frames by which the keys of the run are moved
    theta,
    pairs,
    first_pair,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROTATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLIT_HALF: tl.constexpr,
):
    """The query as keys see it that are moved by `shift`: <q, turn(k, shift)> = <turn(q, -shift), k>."""
    dim = tl.arange(0, BLOCK_D)
    mask = row_mask & (dim < D)[None, :]
    rows = tl.arange(0, BLOCK_M)[:, None] * stride
    tile = tl.load(first + (rows + dim[None, :]), mask=mask, other=0.0)
    if ROTATED:
        if SPLIT_HALF:
            leads = dim < D // 2
            other = tl.where(leads, dim + D // 2, dim - D // 2)
            pair = tl.where(leads, dim, dim - D // 2) - first_pair
        else:
            leads = dim % 2 == 0
            other = dim ^ 1
            pair = dim // 2 - first_pair
        turns = (pair >= 0) & (pair < pairs) & (dim < D)
        rate = tl.load(theta + pair, mask=turns, other=0.0)
        # Angles grow with the stream; they are brought back into one turn before they lose digits.
        angle = rate * shift.to(tl.float64)
        angle = (angle - tl.floor(angle / TWO_PI) * TWO_PI).to(tl.float32)
        sine = tl.where(leads, tl.sin(angle), -tl.sin(angle))
        partner = tl.load(first + (rows + other[None, :]), mask=mask & turns[None, :], other=0.0)
        turned = tile.to(tl.float32) * tl.cos(angle)[None, :] + partner.to(tl.float32) * sine[None, :]
        tile = turned.to(tile.dtype)
    return tile


@triton.jit
def attend_block(
    query,
    key,
    value,
    total,  # [BM, BLOCK_DV] weighted values so far
    weight,  # [BM] sum of the weights
    highest,  # [BM] largest score, in powers of two
    left,  # rows of the block that there are
    scale,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys: online softmax in float32."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    if MASKED:
        scores = tl.where((tl.arange(0, key.shape[0]) < left)[None, :], scores, float("-inf"))
    peak = tl.maximum(highest, tl.max(scores, 1))
    weights = tl.exp2(scores - peak[:, None])
    fade = tl.exp2(highest - peak)
    total = tl.dot(weights.to(value.dtype), value, total * fade[:, None], input_precision=PRECISION)
    return total, weight * fade + tl.sum(weights, 1), peak


@triton.jit
def ragged_attention(
    query,
    key,
    value,
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
    group,  # query heads that share a K/V head
    pairs,
    first_pair,
    scale,  # on scores, times log2(e)
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    ROTATED: tl.constexpr,
    SPLIT_HALF: tl.constexpr,
    LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (tiles of the longest read, reads, PARTS)."""
    read = reads + tl.program_id(1) * 8
    first_row = tl.program_id(0) * BLOCK_M
    rows_of_query = tl.load(read + 3)
    if first_row >= rows_of_query:
        return
    part = tl.program_id(2)
    parts = tl.load(read + 6)
    if part >= parts:
        return
    batch = tl.load(read).to(tl.int64)
    head = tl.load(read + 1).to(tl.int64)
    row = tl.load(read + 2).to(tl.int64) + first_row + tl.arange(0, BLOCK_M)
    row_mask = (first_row + tl.arange(0, BLOCK_M) < rows_of_query)[:, None]
    query_at = tl.load(read + 2).to(tl.int64) + first_row
    tile_at = query + batch * query_batch + head * query_head + query_at * query_row
    keys = key + batch * key_batch + (head // group) * key_head
    values = value + batch * value_batch + (head // group) * value_head
    first_run = tl.load(read + 4)
    last_run = first_run + tl.load(read + 5)

    # This program's share of the blocks of all runs.
    begin, end = 0, 2147483647
    if PARTS > 1:
        blocks = 0
        for r in tl.range(first_run, last_run):
            blocks += tl.cdiv(tl.load(runs + r * 3 + 1), BLOCK_N)
        begin, end = blocks * part // parts, blocks * (part + 1) // parts

    inner = tl.arange(0, BLOCK_N)
    dim, value_dim = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    total = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    turned = 0
    tile = query_tile(
        tile_at, query_row, row_mask, turned, theta, pairs, first_pair, D, BLOCK_D, False, BLOCK_M, SPLIT_HALF
    )
    for r in tl.range(first_run, last_run):
        run_row = tl.load(runs + r * 3).to(tl.int64)
        run_rows = tl.load(runs + r * 3 + 1)
        count = tl.cdiv(run_rows, BLOCK_N)
        whole = run_rows // BLOCK_N
        low, high = tl.maximum(begin, 0), tl.minimum(end, count)
        if ROTATED:
            shift = tl.load(runs + r * 3 + 2)
            if shift != turned:
                tile = query_tile(
                    tile_at, query_row, row_mask, shift, theta, pairs, first_pair, D, BLOCK_D, True, BLOCK_M, SPLIT_HALF
                )
                turned = shift
        for block in tl.range(low, tl.minimum(high, whole), num_stages=STAGES):
            at = run_row + block * BLOCK_N
            k = tl.load(
                keys + at * key_row + inner[:, None] * key_row + dim[None, :], mask=(dim < D)[None, :], other=0.0
            )
            v = tl.load(
                values + at * value_row + inner[:, None] * value_row + value_dim[None, :],
                mask=(value_dim < DV)[None, :],
                other=0.0,
            )
            total, weight, highest = attend_block(
                tile, k.to(tile.dtype), v.to(tile.dtype), total, weight, highest, BLOCK_N, scale, False, PRECISION
            )
        if (low <= whole) & (whole < high):
            at = run_row + whole * BLOCK_N
            left = run_rows - whole * BLOCK_N
            there = (inner < left)[:, None]
            k = tl.load(
                keys + at * key_row + inner[:, None] * key_row + dim[None, :],
                mask=there & (dim < D)[None, :],
                other=0.0,
            )
            v = tl.load(
                values + at * value_row + inner[:, None] * value_row + value_dim[None, :],
                mask=there & (value_dim < DV)[None, :],
                other=0.0,
            )
            total, weight, highest = attend_block(
                tile, k.to(tile.dtype), v.to(tile.dtype), total, weight, highest, left, scale, True, PRECISION
            )
        begin -= count
        end -= count

    # A read without rows gives zero.
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    log_weight = highest + tl.log2(weight)
    out_mask = row_mask & (value_dim < DV)[None, :]
    if parts == 1:
        out_at = out + batch * out_batch + head * out_head + row[:, None] * out_row + value_dim[None, :]
        tl.store(out_at, total.to(out.dtype.element_ty), mask=out_mask)
        if LSE:
            lse_at = lse + batch * lse_batch + head * lse_head + row
            tl.store(lse_at, log_weight * LN2, mask=first_row + tl.arange(0, BLOCK_M) < rows_of_query)
    else:
        slot = tl.load(read + 7) + part * rows_of_query + first_row
        slot_row = slot.to(tl.int64) + tl.arange(0, BLOCK_M)
        tl.store(part_out + slot_row[:, None] * BLOCK_DV + value_dim[None, :], total, mask=row_mask)
        tl.store(part_lse + slot_row, log_weight, mask=first_row + tl.arange(0, BLOCK_M) < rows_of_query)


@triton.jit
def combine_parts(
    out,
    lse,
    part_out,
    part_lse,
    reads,
    out_batch,
    out_row,
    out_head,
    lse_batch,
    lse_head,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LSE: tl.constexpr,
):
    """Grid: (tiles of the longest read, reads). Parts are added in their order, so the result is always the same."""
    read = reads + tl.program_id(1) * 8
    first_row = tl.program_id(0) * BLOCK_M
    rows_of_query = tl.load(read + 3)
    parts = tl.load(read + 6)
    if (first_row >= rows_of_query) | (parts == 1):
        return
    batch = tl.load(read).to(tl.int64)
    head = tl.load(read + 1).to(tl.int64)
    row = tl.load(read + 2).to(tl.int64) + first_row + tl.arange(0, BLOCK_M)
    row_mask = first_row + tl.arange(0, BLOCK_M) < rows_of_query
    value_dim = tl.arange(0, BLOCK_DV)
    total = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    for part in tl.range(0, parts):
        slot = tl.load(read + 7) + part * rows_of_query + first_row
        slot_row = slot.to(tl.int64) + tl.arange(0, BLOCK_M)
        score = tl.load(part_lse + slot_row, mask=row_mask, other=0.0)
        value = tl.load(part_out + slot_row[:, None] * BLOCK_DV + value_dim[None, :], mask=row_mask[:, None], other=0.0)
        peak = tl.maximum(highest, score)
        # A part without rows has the score -inf, and two such have no peak to be compared with.
        fade = tl.where(highest == float("-inf"), 0.0, tl.exp2(highest - peak))
        share = tl.where(score == float("-inf"), 0.0, tl.exp2(score - peak))
        total = total * fade[:, None] + value * share[:, None]
        weight = weight * fade + share
        highest = peak
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    out_at = out + batch * out_batch + head * out_head + row[:, None] * out_row + value_dim[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=row_mask[:, None] & (value_dim < DV)[None, :])
    if LSE:
        tl.store(lse + batch * lse_batch + head * lse_head + row, (highest + tl.log2(weight)) * LN2, mask=row_mask)
