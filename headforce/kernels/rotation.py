"""Turning keys in time: the one rotation that moves all keys of a frame to another frame.

RoPE turns pair p of a key at frame t by t * theta[p] for the temporal pairs, and by angles of the place inside the
frame for the others. Moving a frame by `shift` therefore turns its temporal pairs by shift * theta, the same for every
token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INTERLEAVED, SPLIT_HALF = "interleaved", "split_half"


def turn(x: Tensor, angle: Tensor, first_pair: int, style: str) -> Tensor:
    """Turns pairs first_pair, first_pair + 1, ... of the last dim.

    Args:
        x: [..., D], any floating dtype.
        angle: [..., P] in radians, broadcast against the leading dims of `x`; one angle for each of the P pairs.
        first_pair: the first pair that turns.
        style: `interleaved` (pair p is dims 2p and 2p+1) or `split_half` (dims p and p + D/2).

    Returns [..., D] in the dtype of `x`; the arithmetic is in float32, or in float64 for a float64 input.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    last = first_pair + angle.shape[-1]
    a, b = _split(x.to(compute), style)
    cos, sin = angle.cos().to(compute), angle.sin().to(compute)
    a_part, b_part = a[..., first_pair:last], b[..., first_pair:last]
    a, b = a.clone(), b.clone()
    a[..., first_pair:last], b[..., first_pair:last] = a_part * cos - b_part * sin, a_part * sin + b_part * cos
    return _joined(a, b, style).to(x.dtype)


def factors(theta: Tensor, shifts: Sequence[int]) -> Tensor:
    """complex128 [n, P]: what multiplies the pairs of a key that moves by each of n shifts."""
    angles = torch.tensor(shifts, dtype=torch.float64, device=theta.device)[:, None] * theta
    return torch.polar(torch.ones_like(angles), angles)


def copy_turned(out: Tensor, x: Tensor, turns: Tensor, first_pair: int, style: str) -> None:
    """Copies `x` to `out`, [..., D] each, with pairs first_pair, ... turned by their factors [P]; see `turn`.

    `out` has an even row stride and adjacent columns. The arithmetic is in the dtype of `out`, but at least in float32.
    """
    compute = torch.promote_types(out.dtype, torch.float32)
    if out.dtype != compute:
        wide = torch.empty(out.shape, dtype=compute, device=out.device)
        copy_turned(wide, x, turns, first_pair, style)
        out.copy_(wide)
        return
    out.copy_(x)
    if style == INTERLEAVED:
        pairs = out[..., 2 * first_pair : 2 * (first_pair + len(turns))].unflatten(-1, (-1, 2))
        torch.view_as_complex(pairs).mul_(turns.to(torch.promote_types(compute, torch.complex64)))
        return
    a, b = (half[..., first_pair : first_pair + len(turns)] for half in _split(out, style))
    cos, sin = turns.real.to(compute), turns.imag.to(compute)
    was = a.clone()
    a.mul_(cos).addcmul_(b, sin, value=-1)
    b.mul_(cos).addcmul_(was, sin)


def rotated(x: Tensor, turns: Tensor, style: str) -> Tensor:
    """[B, S, H, D] with every pair of every row turned by its cosine and sine [S, D / 2, 2], in float32 or float64."""
    compute = torch.promote_types(x.dtype, torch.float32)
    a, b = _split(x.to(compute), style)
    cos, sin = turns.to(compute)[:, None].unbind(-1)
    return _joined(a * cos - b * sin, a * sin + b * cos, style)


def _split(x: Tensor, style: str) -> tuple[Tensor, ...]:
    """First and second dims of all pairs, [..., D / 2] each."""
    return x.unflatten(-1, (-1, 2)).unbind(-1) if style == INTERLEAVED else x.unflatten(-1, (2, -1)).unbind(-2)


def _joined(a: Tensor, b: Tensor, style: str) -> Tensor:
    return torch.stack((a, b), dim=-1 if style == INTERLEAVED else -2).flatten(-2)
