"""The kernel that puts the parts of a read together: a softmax over all of its keys from softmaxes over some of them.

Parts are added in their order, so the result is always the same. This file is a template and a working kernel, see
`lowering.codegen`.
"""

# No `from __future__ import annotations`: Triton looks at the annotations of the arguments.

import triton
import triton.language as tl

# --- settings: see `kernels.spec.Spec.settings`
DV = tl.constexpr(128)  # width of a value
BLOCK_DV = tl.constexpr(128)  # the next power of two
BLOCK_M = tl.constexpr(128)  # query rows of a tile
PADDED = tl.constexpr(False)  # the width is no power of two
LSE = tl.constexpr(True)
# --- end of settings

LN2 = tl.constexpr(0.6931471805599453)


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
):
    """Grid: (tiles of the longest read, reads)."""
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
        # A part without rows has the score -inf and left no values; where all had none, there is no peak yet.
        there = (row_mask & (score != float("-inf")))[:, None]
        value = tl.load(part_out + slot_row[:, None] * BLOCK_DV + value_dim[None, :], mask=there, other=0.0)
        peak = tl.maximum(highest, score)
        level = tl.where(peak == float("-inf"), 0.0, peak)
        fade = tl.exp2(highest - level)
        share = tl.exp2(score - level)
        total = total * fade[:, None] + value * share[:, None]
        weight = weight * fade + share
        highest = peak
    total = total / tl.where(weight == 0.0, 1.0, weight)[:, None]
    out_at = out + batch * out_batch + head * out_head + row[:, None] * out_row + value_dim[None, :]
    there = row_mask[:, None]
    if PADDED:
        there = there & (value_dim < DV)[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=there)
    if LSE:
        tl.store(lse + batch * lse_batch + head * lse_head + row, (highest + tl.log2(weight)) * LN2, mask=row_mask)
