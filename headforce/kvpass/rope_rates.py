"""Which pairs turn with the frame, and how fast, read from the model's own RoPE table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from .site import PlaceTable, RopeForm, Site

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
    first, last = rope.temporal or (0, 0)
    angle = _angles(rope, tables, rope.temporal_columns or (0, 0), last - first, 2)
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


def place_angles(site: Site, tables: Mapping[PlaceTable, Sequence[Tensor]], grid: tuple[int, int]) -> Tensor:
    """Radians that every pair turns for the place of a token in its frame, float64 [height * width, D / 2], on the CPU.

    Args:
        site: a site whose RoPE shows `places`. tables: the values of the tables of each. grid: (height, width).
    """
    rope, (height, width) = site.rope, grid
    assert rope is not None
    angles = torch.zeros(height, width, rope.pairs, dtype=torch.float64)
    for place, values in tables.items():
        first, last = place.pairs
        angle = _angles(rope, values, place.columns, last - first, max(grid)).cpu()
        angles[..., first:last] = angle[:height, None] if place.axis == "height" else angle[:width]
    return angles.flatten(0, 1)


def _angles(rope: RopeForm, tables: Sequence[Tensor], columns: tuple[int, int], pairs: int, least: int) -> Tensor:
    """The angles of some pairs, float64 [positions, pairs], whole turns left out or not. Positions are those of the
    table, or from rates the `least` first."""
    first, last = columns

    def of(table: Tensor) -> Tensor:
        return table.reshape(len(table), -1)[:, first:last]

    if rope.holds == "rates":
        rates = tables[0].flatten()[first:last].to(torch.float64)
        angle = torch.arange(least, dtype=torch.float64, device=rates.device)[:, None] * rates
    elif rope.holds == "angles":
        angle = of(tables[0]).to(torch.float64)
    elif len(tables) == 2:
        cos, sin = (of(table).to(torch.float64) for table in tables)
        angle = torch.atan2(sin, cos)
    elif tables[0].is_complex():
        angle = of(tables[0]).to(torch.complex128).angle()
    else:
        cos, sin = tables[0].to(torch.float64)[:, first:last].unbind(-1)
        angle = torch.atan2(sin, cos)
    if angle.shape[1] == 2 * pairs:
        # Each angle stands twice, for both dims of its pair.
        angle = angle[:, :pairs] if rope.kind == "split_half" else angle[:, ::2]
    return angle
