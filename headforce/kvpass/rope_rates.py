"""Which pairs turn with the frame, and how fast, read from the model's own RoPE table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from .site import Columns, PlaceTable, RopeForm, Site

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
    assert rope.temporal_columns is not None
    angle = _angles(site, tables, rope.temporal_columns, 2)
    rates = angle[1]
    frames = torch.arange(len(angle), dtype=torch.float64, device=angle.device)[:, None]
    # Angles wrap around; the cosine of the difference does not. A rate in float32 is off by more with every frame.
    errors = (1 - torch.cos(angle - frames * rates)).abs() - (1e-6 * frames).square()
    error = errors.max().item()
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
        angle = _angles(site, values, place.columns, max(grid)).cpu()
        angles[..., first:last] = angle[:height, None] if place.axis == "height" else angle[:width]
    return angles.flatten(0, 1)


def _angles(site: Site, tables: Sequence[Tensor], columns: tuple[Columns, Columns], least: int) -> Tensor:
    """The angles of some pairs, float64 [positions, pairs], whole turns left out or not. Positions are those of the
    table, or from rates the `least` first. HF-ROPE for cosines and sines that do not belong together."""
    rope = site.rope
    assert rope is not None
    one, other = (_taken(table, its) for table, its in zip((tables[0], tables[-1]), columns, strict=True))
    if rope.holds == "turns" and not one.is_complex():
        turns = torch.complex(one.to(torch.float64), other.to(torch.float64))
    else:
        if one.shape != other.shape or not torch.equal(one, other):
            raise _unlike(site, "cosines and sines of different angles")
        if rope.holds != "turns":
            angle = one.to(torch.float64)
            return angle if rope.holds == "angles" else torch.arange(least, device=angle.device)[:, None] * angle
        turns = one.to(torch.complex128)
    length = turns.abs()
    if (length - length[:1]).abs().max() > 1e-2 * length.max():
        raise _unlike(site, "cosines and sines that grow or shrink with the position")
    return turns.angle()


def _unlike(site: Site, found: str) -> HeadforceError:
    return HeadforceError("HF-ROPE", site=site.name, found=found, needed="a rotation by one angle for each pair")


def _taken(table: Tensor, columns: Columns) -> Tensor:
    """The values [positions, pairs] of a table, or [1, pairs] where positions share them."""
    by_position = table[None] if columns.rows is None else table.movedim(columns.rows, 0)
    flat = by_position.reshape(len(by_position), -1)
    return flat[:, columns.first :: columns.step][:, : columns.count]
