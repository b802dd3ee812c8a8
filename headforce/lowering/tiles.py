"""Keys and values as matrices whose blocks a tensor descriptor (TMA) names."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def strides(source: Tensor) -> tuple[int, int, int]:
    """Elements from one batch row, row and K/V head to the next; pages are one long column of rows."""
    if source.dim() == 3:
        return 0, source.stride(1), 0
    return source.stride(0), source.stride(1), source.stride(2)


def describable(source: Tensor) -> bool:
    """Whether pages [P, T, D] or operands [B, R, Hk, D] are rows and columns of one matrix.

    The matrix has a row for each stride of a row. The offset of every batch row and head must then be a row and a
    column, with all columns of the head inside the matrix; addresses must be multiples of 16 bytes.
    """
    width = source.shape[-1]
    batch, row, head = strides(source)
    if width & (width - 1) or width < 16 or source.stride(-1) != 1 or row == 0 or source.numel() == 0:
        return False
    if any(step * source.element_size() % 16 for step in (batch, row, head)) or source.data_ptr() % 16:
        return False
    if source.dim() == 3:
        return True
    heads = range(source.shape[2])
    return (source.shape[0] == 1 or batch % row == 0) and all(h * head % row + width <= row for h in heads)


def matrix(source: Tensor) -> tuple[list[int], list[int]]:
    """Shape and strides of the matrix of `describable`."""
    batch, row, head = strides(source)
    width = source.shape[-1]
    if source.dim() == 3:
        return [source.shape[0] * source.shape[1], width], [row, 1]
    heads = range(source.shape[2])
    last = (source.shape[0] - 1) * batch // row + max(h * head // row for h in heads)
    return [last + source.shape[1], max(h * head % row for h in heads) + width], [row, 1]


def tiles(source: Tensor, rows: int) -> Any:
    """A descriptor of blocks of `rows` rows of one head, for plain Triton."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(source, *matrix(source), [rows, source.shape[-1]])


def gluon_tiles(source: Tensor, rows: int) -> Any:
    """The same for Gluon, which wants to know how the block lies in shared memory."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from ..kernels.hopper_attention import tile_layout

    block = [rows, source.shape[-1]]
    return TensorDescriptor(source, *matrix(source), block, tile_layout(block, source.dtype))
