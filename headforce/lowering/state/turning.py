"""How the keys in the pages were rotated, and how that is undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import HeadforceError
from ...kernels.rotation import turn


@dataclass(frozen=True)
class Turning:
    """The rotation of stored keys.

    Attributes:
        theta: float64 [Pt], radians that each temporal pair turns in one frame; empty where no RoPE is known. On the
            device of the keys, as `places` are.
        first_pair: the first temporal pair. style: how pairs lie in the head dim, see `kernels.rotation.turn`.
        places: float64 [T, D / 2], radians by which every pair turns for the place of a token in its frame, zero for
            temporal pairs; None where that is not known.
        grid: (height, width) of a frame in tokens; None where that is not known.
    """

    theta: Tensor
    first_pair: int
    style: str
    places: Tensor | None = None
    grid: tuple[int, int] | None = None

    def same(self, other: Turning) -> bool:
        """Whether both turn every key alike."""
        if (self.first_pair, self.style, self.grid) != (other.first_pair, other.style, other.grid):
            return False
        pairs = ((self.theta, other.theta), (self.places, other.places))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    def moved(self, keys: Tensor, shifts: Tensor) -> Tensor:
        """Keys [n, T, D] of n frames, in float32 at least, each moved by its own number of frames [n]."""
        angle = shifts[:, None, None] * self.theta
        return turn(keys.to(torch.promote_types(keys.dtype, torch.float32)), angle, self.first_pair, self.style)

    def raw(self, keys: Tensor, frames: Sequence[int], need: str) -> Tensor:
        """Keys [..., n, T, D] of n frames as they were before RoPE, in float32 at least; HF-ROPE if nobody knows."""
        return self._turned(keys, [-frame for frame in frames], -self._places(need))

    def raw_rows(self, keys: Tensor, frames: Sequence[int], rows: Sequence[int], need: str) -> Tensor:
        """The same for keys [..., n, R, D], each of one frame from its row `rows` [n] on."""
        places = self._places(need)
        angles = torch.stack([places[row : row + keys.shape[-2]] for row in rows])
        return self._turned(keys, [-frame for frame in frames], -angles)

    def placed(self, keys: Tensor, frame: int, rows: Tensor, need: str) -> Tensor:
        """Raw keys [..., R, D] as the model would store them at `frame`, each at the place of the token `rows` [R]."""
        return self._turned(keys[..., None, :, :], [frame], self._places(need)[rows]).squeeze(-3)

    def _places(self, need: str) -> Tensor:
        if self.places is None:
            raise HeadforceError(
                "HF-ROPE",
                found=f"{need}, and keys of which it is not known how they turn with their place in the frame",
                needed="a RoPE table that is an input of the graph and shows rows and columns of a frame",
            )
        return self.places

    def _turned(self, keys: Tensor, frames: Sequence[int], angles: Tensor) -> Tensor:
        """Keys [..., n, R, D] turned by their frame [n] and the angles of their place, [R, D / 2] or [n, R, D / 2]."""
        total = angles.expand(len(frames), *angles.shape[-2:]).clone()
        last = self.first_pair + len(self.theta)
        time = torch.tensor(frames, dtype=torch.float64, device=total.device)[:, None] * self.theta
        total[..., self.first_pair : last] += time[:, None]
        compute = torch.promote_types(keys.dtype, torch.float32)
        return turn(keys.to(compute), total, 0, self.style)
