"""Rotating a chunk's query and key, and writing its key and value into their pages, in one launch.

A program takes some rows of one head of one batch row. The rotation is in float32, with cosines and sines from a table
of the chunk's rows; see `kernels.reference.rotate_and_write`. This file is a template and a working kernel, see
`lowering.codegen`.
"""

# No `from __future__ import annotations`: Triton looks at the annotations of the arguments.

import triton
import triton.language as tl

# --- settings: see `kernels.spec.Spec.settings`
D = tl.constexpr(128)  # width of a query and a key
DV = tl.constexpr(128)  # width of a value
BLOCK_D = tl.constexpr(128)  # the next power of two
BLOCK_DV = tl.constexpr(128)
BLOCK_M = tl.constexpr(32)  # rows of a program
PADDED = tl.constexpr(False)  # a width is no power of two
SPLIT_HALF = tl.constexpr(False)  # pairs of RoPE are halves apart, not neighbours
# --- end of settings


@triton.jit
def rotated(first, stride, turn, at, there):
    """[BLOCK_M, BLOCK_D] rows `at`, turned by their cosines and sines in `turn` [S, D / 2, 2]."""
    dim = tl.arange(0, BLOCK_D)
    if SPLIT_HALF:
        leads = dim < D // 2
        other = tl.where(leads, dim + D // 2, dim - D // 2)
        pair = tl.where(leads, dim, dim - D // 2)
    else:
        leads = dim % 2 == 0
        other = dim ^ 1
        pair = dim // 2
    if PADDED:
        there = there & (dim < D)[None, :]
    rows = first + at[:, None] * stride
    x = tl.load(rows + dim[None, :], mask=there, other=0.0).to(tl.float32)
    y = tl.load(rows + other[None, :], mask=there, other=0.0).to(tl.float32)
    angle = turn + at[:, None] * D + pair[None, :] * 2
    cosine = tl.load(angle, mask=there, other=0.0).to(tl.float32)
    sine = tl.load(angle + 1, mask=there, other=0.0).to(tl.float32)
    return x * cosine + y * tl.where(leads[None, :], -sine, sine)


@triton.jit
def rotate_and_write(
    query,
    key,
    value,
    query_turn,
    key_turn,
    out,
    k_pool,
    v_pool,
    pages,
    rows,
    heads,
    frames,
    page_rows,
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
):
    """Grid: (tiles of rows, heads, batch)."""
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_there = at < rows
    there = row_there[:, None]
    page = tl.load(pages + (batch * heads + head) * frames + at // page_rows, mask=row_there, other=0)
    slot = page * page_rows + at % page_rows

    dim = tl.arange(0, BLOCK_D)[None, :]
    value_dim = tl.arange(0, BLOCK_DV)[None, :]
    key_there = there
    value_there = there
    if PADDED:
        key_there = there & (dim < D)
        value_there = there & (value_dim < DV)
    turned = rotated(query + batch * query_batch + head * query_head, query_row, query_turn, at, there)
    to = out + batch * out_batch + head * out_head + at[:, None] * out_row + dim
    tl.store(to, turned.to(out.dtype.element_ty), mask=key_there)
    turned = rotated(key + batch * key_batch + head * key_head, key_row, key_turn, at, there)
    tl.store(k_pool + slot[:, None] * D + dim, turned.to(k_pool.dtype.element_ty), mask=key_there)
    kept = tl.load(
        value + batch * value_batch + head * value_head + at[:, None] * value_row + value_dim,
        mask=value_there,
        other=0.0,
    )
    tl.store(v_pool + slot[:, None] * DV + value_dim, kept.to(v_pool.dtype.element_ty), mask=value_there)
