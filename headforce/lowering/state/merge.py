"""What a merge makes: means over cells of raw keys, turned back to where the mean stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import HeadforceError
from ...policy import Part
from ...policy.ops.merge import Merge
from .making import maker
from .rows import Rows
from .turning import Turning


@maker("merge")
def merged(rows: Rows, op: Merge, parts: Sequence[Part], turning: Turning) -> tuple[Tensor, Tensor]:
    """Means over `op.block` frames and cells of `op.height` x `op.width` tokens, in float32 at least.

    Keys are averaged as they were before RoPE. The mean is turned to the middle frame and to the first token of its
    cell. Raises HF-SEGMENTS for a grid that does not come out even, HF-ROPE where rotation or grid are not known.
    """
    height, width = _grid(op, turning)
    # The token at which each cell begins.
    first = torch.arange(height * width).view(height, width)[:: op.height, :: op.width].flatten()
    made: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in parts:
        pages = [rows.page[frame] for frame in part.frames]
        keys = turning.raw(rows.take(rows.k, pages, 1), part.frames, str(op))
        made[0].append(turning.placed(_means(keys, op, height, width), part.at, first, str(op)))
        values = rows.take(rows.v, pages, 1)
        made[1].append(_means(values.to(torch.promote_types(values.dtype, torch.float32)), op, height, width))
    return torch.stack(made[0], dim=1), torch.stack(made[1], dim=1)


def _grid(op: Merge, turning: Turning) -> tuple[int, int]:
    if turning.grid is None:
        raise HeadforceError(
            "HF-ROPE",
            found=f"{op}, and no grid of tokens",
            needed="a RoPE table that shows rows and columns",
        )
    height, width = turning.grid
    if height % op.height or width % op.width:
        raise HeadforceError(
            "HF-SEGMENTS", found=f"{op} on a frame of {height} x {width} tokens", needed="cells that divide both"
        )
    return height, width


def _means(x: Tensor, op: Merge, height: int, width: int) -> Tensor:
    """[C, n, T, D] -> [C, cells, D]: the mean of every cell over all n frames."""
    grid = x.unflatten(2, (height // op.height, op.height, width // op.width, op.width))
    return grid.mean(dim=(1, 3, 5)).flatten(1, 2)
