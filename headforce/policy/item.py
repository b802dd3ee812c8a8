"""What a query frame reads through one operator: whole frames, or parts out of a store's own pages."""

from __future__ import annotations

from dataclasses import dataclass

from .parts import Part


@dataclass(frozen=True)
class Item:
    """Frames that a query reads through one operator, rising, with the position of each."""

    kind: str
    frames: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def stand(self) -> tuple[int, ...]:
        """The frames at whose indices the keys stand in their pages."""
        return self.frames


@dataclass(frozen=True)
class PartItem:
    """Parts that a query reads out of the pages of the store `store`, in the order of their positions."""

    kind: str
    store: str
    parts: tuple[Part, ...]
    positions: tuple[int, ...]

    @property
    def stand(self) -> tuple[int, ...]:
        """The frames at whose indices the keys stand in their pages."""
        return tuple(part.at for part in self.parts)
