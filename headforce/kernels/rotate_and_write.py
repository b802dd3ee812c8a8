"""Rotating a chunk's query and key, and writing its key and value into their pages, in one launch.

A program takes some rows of one head of one batch row. The rotation is in float32, with cosines and sines from a table
of the chunk's rows; see `kernels.reference.rotate_and_write`. Nothing here but moving bytes takes time, so every load
and store is of neighbours, and the heads of the same rows, which read the same of the table, run side by side. This
file is a template and a working kernel, see `lowering.codegen`.
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
def pairs_of(x):
    """The first and the second of all neighbours in a row of x [BLOCK_M, BLOCK_D], [BLOCK_M, BLOCK_D / 2] each."""
    return tl.split(tl.reshape(x, (BLOCK_M, BLOCK_D // 2, 2)))


@triton.jit
def move_turned(source, source_row, turn, to, to_row, at, there):
    """Copies rows `at` of `source` to rows `to_row` of `to`, turned by their cosines and sines `turn` [S, D / 2, 2]."""
    dim = tl.arange(0, BLOCK_D)[None, :]
    row_there = there
    if PADDED:
        there = there & (dim < D)
    cosine, sine = pairs_of(tl.load(turn + at * D + dim, mask=there, other=0.0).to(tl.float32))
    first = source + at * source_row
    if SPLIT_HALF:
        pair = tl.arange(0, BLOCK_D // 2)[None, :]
        if PADDED:
            row_there = row_there & (pair < D // 2)
        a = tl.load(first + pair, mask=row_there, other=0.0).to(tl.float32)
        b = tl.load(first + D // 2 + pair, mask=row_there, other=0.0).to(tl.float32)
        tl.store(to + to_row + pair, (a * cosine - b * sine).to(to.dtype.element_ty), mask=row_there)
        tl.store(to + to_row + D // 2 + pair, (a * sine + b * cosine).to(to.dtype.element_ty), mask=row_there)
    else:
        a, b = pairs_of(tl.load(first + dim, mask=there, other=0.0).to(tl.float32))
        turned = tl.reshape(tl.join(a * cosine - b * sine, a * sine + b * cosine), (BLOCK_M, BLOCK_D))
        tl.store(to + to_row + dim, turned.to(to.dtype.element_ty), mask=there)


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
    """Grid: (heads, tiles of rows, batch)."""
    head = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    page = tl.load(pages + (batch * heads + head) * frames + row // page_rows, mask=row < rows, other=0)
    slot = (page * page_rows + row % page_rows)[:, None]
    at = row.to(tl.int64)[:, None]
    there = at < rows

    query += batch * query_batch + head * query_head
    out += batch * out_batch + head * out_head
    move_turned(query, query_row, query_turn, out, at * out_row, at, there)
    move_turned(key + batch * key_batch + head * key_head, key_row, key_turn, k_pool, slot * D, at, there)
    value_dim = tl.arange(0, BLOCK_DV)[None, :]
    if PADDED:
        there = there & (value_dim < DV)
    value += batch * value_batch + head * value_head
    kept = tl.load(value + at * value_row + value_dim, mask=there, other=0.0)
    tl.store(v_pool + slot * DV + value_dim, kept.to(v_pool.dtype.element_ty), mask=there)
