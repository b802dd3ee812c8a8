"""Which pairs turn with the frame, and how fast, read from the model's own RoPE table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from .site import RopeForm, Site

_STYLES = {"complex": INTERLEAVED, "interleaved": INTERLEAVED, "split_half": SPLIT_HALF}


def rotated_pairs(site: Site) -> tuple[int, str]:
    """The first pair that turns with the frame, and how pairs lie in the head dim."""
    if site.rope is None or site.rope.temporal is None:
        return 0, INTERLEAVED
    return site.rope.temporal[0], style_of(site.rope)


def style_of(rope: RopeForm) -> str:
    """How pairs lie in the head dim, see `kernels.rotation.turn`."""
    return _STYLES[rope.kind]


def temporal_rates(site: Site, tables: Sequence[Tensor]) -> Tensor:
    """Radians that each temporal pair turns in one frame, float64 [P] on the device of the table.

    Args:
        site: a site with RoPE. tables: the values of `site.rope.tables`.

    Raises HF-ROPE if the table does not turn by the same angle from frame to frame.
    """
    rope = site.rope
    assert rope is not None
    cos, sin = _cos_sin(rope, tables)
    angle = torch.atan2(sin, cos)
    rates = angle[1]
    frames = torch.arange(min(len(angle), 64), dtype=torch.float64, device=angle.device)
    # Angles wrap around; the cosine of the difference does not.
    error = (1 - torch.cos(angle[: len(frames)] - frames[:, None] * rates)).abs().max().item()
    if error > 1e-4:
        raise HeadforceError(
            "HF-ROPE",
            site=site.name,
            found=f"a RoPE table whose temporal angles do not grow evenly (off by up to {error:.1e})",
            needed="angles that are frame index times a fixed rate",
        )
    return rates


def _cos_sin(rope: RopeForm, tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the temporal pairs, float64 [positions, P]."""
    first, last = rope.temporal_columns or (0, 0)
    if len(tables) == 2:
        cos, sin = (t.to(torch.float64).reshape(len(t), -1)[:, first:last] for t in tables)
    elif tables[0].is_complex():
        columns = tables[0].to(torch.complex128).reshape(len(tables[0]), -1)[:, first:last]
        cos, sin = columns.real, columns.imag
    else:
        cos, sin = tables[0].to(torch.float64)[:, first:last].unbind(-1)
    pairs = (rope.temporal or (0, 0))[1] - (rope.temporal or (0, 0))[0]
    if cos.shape[1] == 2 * pairs:
        # Each angle stands twice, for both dims of its pair.
        half = slice(None, pairs) if rope.kind == "split_half" else slice(None, None, 2)
        cos, sin = cos[:, half], sin[:, half]
    return cos, sin
