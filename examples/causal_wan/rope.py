"""Rotary position embedding over three axes: time, row and column.

The channels of a head form pairs (2j, 2j + 1), each turned by an angle. The first pairs turn with the frame, the next
with the row, the last with the column: 22, 21 and 21 pairs in a head of 128 channels. Frames count from the start of
the video, rows and columns from the start of their frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many pairs turn with the frame, the row and the column.

    >>> axis_pairs(128), axis_pairs(64)
    ((22, 21, 21), (12, 10, 10))
    """
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rope_table(head_dim: int, positions: int = 1024, device: torch.device | str | None = None) -> Tensor:
    """Cosine and sine of every pair at every position, float32 [positions, head_dim / 2, 2].

    The angles are computed in float64: at position 1000 a float32 angle is already wrong in its fourth decimal.
    """
    where = torch.arange(positions, dtype=torch.float64, device=device)
    angles = [
        torch.outer(where, THETA ** -(torch.arange(pairs, dtype=torch.float64, device=device) / pairs))
        for pairs in axis_pairs(head_dim)
    ]
    angle = torch.cat(angles, dim=1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rope_angles(table: Tensor, start_frame: int, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Cosine and sine for the tokens of a chunk, each float32 [tokens, 1, head_dim / 2].

    ``grid`` is (frames, rows, columns); tokens are ordered frame by frame, row by row. Raises ``ValueError`` when the
    chunk or its frames reach past the table.
    """
    frames, rows, columns = grid
    positions, pairs = table.shape[0], table.shape[1]
    if start_frame + frames > positions or rows > positions or columns > positions:
        raise ValueError(
            f"the RoPE table has {positions} positions, but the chunk reaches frame {start_frame + frames - 1}, "
            f"row {rows - 1}, column {columns - 1}; raise WanConfig.rope_positions"
        )
    time, row, column = table.split(axis_pairs(2 * pairs), dim=1)
    turned = (
        time[start_frame : start_frame + frames].view(frames, 1, 1, -1, 2).expand(frames, rows, columns, -1, 2),
        row[:rows].view(1, rows, 1, -1, 2).expand(frames, rows, columns, -1, 2),
        column[:columns].view(1, 1, columns, -1, 2).expand(frames, rows, columns, -1, 2),
    )
    cos, sin = torch.cat(turned, dim=3).reshape(frames * rows * columns, 1, pairs, 2).unbind(-1)
    return cos, sin


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of ``x`` [B, tokens, heads, head_dim] in float32; the result has the dtype of ``x``."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).type_as(x)
