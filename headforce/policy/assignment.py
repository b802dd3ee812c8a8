"""Which heads go without memory: the kinds of all heads of a model, assigned jointly (Dummy Forcing, 2601.20499)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import HeadforceError


def assign_kinds(gains: Sequence[Sequence[float]], dummies: int) -> list[int | None]:
    """A kind of memory for every head but `dummies` of them, so that the sum of gains is the largest.

    Args:
        gains: for every head, what each kind of memory retains: as many numbers of at least 0 for every head.
        dummies: exactly so many heads get none, and gain nothing.

    Returns the kind of every head, from 0, or None. Of kinds that are equally good a head gets the first, and of
    heads that lose the same the earlier ones go without. Raises HF-CLASSIFY for numbers that are no gains, for rows
    that are not equally long, and for more dummies than heads.

    This is exact. Whichever heads go without, the others gain most with the best kind of each; the sum is then the
    best gains of all heads less those of the heads that go without, so these are the heads with the least to lose.
    Numbers are compared and never added, so nothing is rounded.
    """
    width = len(gains[0]) if gains else 0
    for head, row in enumerate(gains):
        if len(row) != width or not row:
            raise HeadforceError(
                "HF-CLASSIFY",
                site=f"head {head}",
                found=f"{len(row)} gains, and {width} for head 0",
                needed="a gain for every kind of memory",
            )
        _check_gains(row, f"head {head}")
    if not 0 <= dummies <= len(gains):
        raise HeadforceError(
            "HF-CLASSIFY",
            found=f"{dummies} heads without memory",
            needed=f"from 0 to the {len(gains)} that there are",
        )
    kinds: list[int | None] = [max(range(width), key=row.__getitem__) for row in gains]
    for head in sorted(range(len(gains)), key=lambda head: max(gains[head]))[:dummies]:
        kinds[head] = None
    return kinds


def normalised(first: Sequence[float], middle: Sequence[float]) -> list[tuple[float, float]]:
    """The gains of every head from the probability on its first frames and on its middle frames.

    Each is divided by its sum over all heads, so that the two kinds are compared by how much of the model's attention
    of that kind a head has. A sum of zero leaves zeros. Raises HF-CLASSIFY for numbers that are no gains, and for
    lists that are not equally long.
    """
    if len(first) != len(middle):
        raise HeadforceError(
            "HF-CLASSIFY",
            found=f"the first frames of {len(first)} heads and the middle frames of {len(middle)}",
            needed="both of every head",
        )
    columns = []
    for name, column in (("first", first), ("middle", middle)):
        _check_gains(column, f"the {name} frames")
        total = math.fsum(column) or 1.0
        columns.append([gain / total for gain in column])
    return list(zip(*columns, strict=True))


def _check_gains(gains: Sequence[float], site: str) -> None:
    for gain in gains:
        if not 0 <= gain < math.inf:  # NaN is neither
            raise HeadforceError("HF-CLASSIFY", site=site, found=str(gain), needed="a number of at least 0")
