"""Position maps: the frame index under which RoPE sees a remembered frame.

A map is a function of the frame f and the query frame q, both at their own indices. What counts is the distance
q - position; it is bounded by `position_range` in a policy file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import HeadforceError


@dataclass(frozen=True)
class PositionMap:
    """Base of the maps. `by_query` says that the position moves with the query frame."""

    name: ClassVar[str]
    by_query: ClassVar[bool] = False

    def position(self, frame: int, query: int) -> int:
        """The frame index that RoPE uses for `frame` when the query sits at frame `query`."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Keep(PositionMap):
    """`keep`: a frame is seen at its own index. The default."""

    name: ClassVar[str] = "keep"

    def position(self, frame: int, query: int) -> int:
        return frame


@dataclass(frozen=True)
class _Distance(PositionMap):
    distance: int
    by_query: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.distance) is not int or self.distance < 1:
            raise HeadforceError(
                "HF-OP-ARG", found=f"distance {self.distance!r} in {self.name}()", needed="a whole number of at least 1"
            )

    def __str__(self) -> str:
        return f"{self.name}({self.distance})"


@dataclass(frozen=True)
class Collapse(_Distance):
    """`collapse(d)`: every frame is seen at distance min(q, d), whatever its age (Pyramid Forcing)."""

    name: ClassVar[str] = "collapse"

    def position(self, frame: int, query: int) -> int:
        return max(0, query - self.distance)

    __str__ = _Distance.__str__


@dataclass(frozen=True)
class Clamp(_Distance):
    """`clamp(d)`: a frame older than d is seen at distance d; a nearer one keeps its own index."""

    name: ClassVar[str] = "clamp"

    def position(self, frame: int, query: int) -> int:
        return max(frame, query - self.distance)

    __str__ = _Distance.__str__


@dataclass(frozen=True)
class Carry(PositionMap):
    """`carry(back, first, every)`: at frame `first`, and every `every` frames again, a frame is moved so far that frame
    0 stands `back` frames before that; until then frames keep their own indices (Deep Forcing's sink)."""

    back: int
    first: int
    every: int
    name: ClassVar[str] = "carry"
    by_query: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("back", "first", "every"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise HeadforceError(
                    "HF-OP-ARG", found=f"{name}={value!r} in carry()", needed="a whole number of at least 1"
                )

    def position(self, frame: int, query: int) -> int:
        if query < self.first:
            return frame
        moved = self.first + (query - self.first) // self.every * self.every
        return frame + max(0, moved - self.back)

    def __str__(self) -> str:
        return f"{self.name}({self.back}, {self.first}, {self.every})"


KEEP = Keep()
CONTIGUOUS = "contiguous"
"""The map of a whole rule, `(...)@contiguous`: kept frames in order, then the chunk, without gaps."""

MAPS: dict[str, type[PositionMap]] = {kind.name: kind for kind in (Keep, Collapse, Clamp, Carry)}


def contiguous_position(rank: int, kept: int, start: int) -> int:
    """Position of the `rank`-th of `kept` frames when they are laid without gaps right before frame `start`."""
    return start - kept + rank
