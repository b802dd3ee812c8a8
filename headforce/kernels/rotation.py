"""Turning keys in time: the one rotation that moves all keys of a frame to another frame.

RoPE turns pair p of a key at frame t by t * theta[p] for the temporal pairs, and by angles of the place inside the
frame for the others. Moving a frame by `shift` therefore turns its temporal pairs by shift * theta, the same for every
token.
"""

from __future__ import annotations

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
    half, last = x.shape[-1] // 2, first_pair + angle.shape[-1]
    pairs = x.to(compute).unflatten(-1, (half, 2) if style == INTERLEAVED else (2, half))
    axis = -1 if style == INTERLEAVED else -2
    a, b = pairs.unbind(axis)
    cos, sin = angle.cos().to(compute), angle.sin().to(compute)
    a_part, b_part = a[..., first_pair:last], b[..., first_pair:last]
    a, b = a.clone(), b.clone()
    a[..., first_pair:last], b[..., first_pair:last] = a_part * cos - b_part * sin, a_part * sin + b_part * cos
    return torch.stack((a, b), dim=axis).flatten(-2).to(x.dtype)
