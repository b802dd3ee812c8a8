"""What a transformer like Wan does between its products and its attention, on random numbers, to be timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEAD = 256, 64
"""Numbers in a token, and in a head."""

Make = Callable[..., Tensor]
"""Makes a tensor of random numbers of a shape."""


class Rest:
    """A layer, on one frame of `rows` tokens: norms, modulation, RoPE, gates and residuals."""

    def __init__(self, rows: int, make: Make) -> None:
        self.norms = [nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(3)]
        self.x, self.time, self.modulation = make(1, rows, WIDTH), make(1, 1, 6, WIDTH), make(1, 6, WIDTH)
        self.gain, self.angles = make(WIDTH), make(rows, 1, HEAD // 2, 2).float()

    def __call__(self) -> tuple[Tensor, Tensor]:
        x = self.x
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.unsqueeze(1) + self.time).chunk(6, dim=2)
        y = modulated(self.norms[0](x), shift1, scale1)
        cos, sin = torch.cat((self.angles[..., :12, :], self.angles[..., 12:, :]), dim=2).unbind(-1)
        q, k = (rotated(self.normed(y), cos, sin) for _ in range(2))
        x = x + gated(q.flatten(2), gate1)
        x = x + self.normed(self.norms[1](x)).flatten(2)
        return x + gated(modulated(self.norms[2](x), shift2, scale2), gate2), k

    def normed(self, x: Tensor) -> Tensor:
        """Root-mean-square norm, cut into heads."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + 1e-6)
        return (y.type_as(x) * self.gain).unflatten(-1, (-1, HEAD))


class Ends:
    """The timestep's encoding, the last norm and modulation, and bringing latents in and out of their order."""

    def __init__(self, rows: int, make: Make) -> None:
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.x, self.times = make(1, rows, WIDTH), make(1)
        self.time, self.modulation = make(1, 1, WIDTH), make(1, 2, WIDTH)

    def __call__(self) -> tuple[Tensor, Tensor]:
        half = torch.arange(64, dtype=torch.float64, device=self.x.device)
        angle = torch.outer(self.times.double(), 10_000.0 ** -(half / 64))
        encoded = torch.cat((angle.cos(), angle.sin()), dim=1).type_as(self.x)
        time = F.silu(F.silu(self.time)).unsqueeze(2)
        shift, scale = (self.modulation.unsqueeze(1) + time).chunk(2, dim=2)
        return encoded, modulated(self.norm(self.x), shift, scale)[..., :64].transpose(1, 2).clone()


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Every frame of x [B, F * T, dim] scaled and shifted by its own [B, F, 1, dim]."""
    return (x.unflatten(1, (shift.shape[1], -1)) * (1 + scale) + shift).flatten(1, 2)


def gated(x: Tensor, factor: Tensor) -> Tensor:
    """Every frame of x [B, F * T, dim] times its own [B, F, 1, dim]."""
    return (x.unflatten(1, (factor.shape[1], -1)) * factor).flatten(1, 2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on the pairs of x [B, tokens, heads, D]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)
