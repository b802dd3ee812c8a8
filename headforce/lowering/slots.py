"""Which page of its region every frame of a head sits in. Pure integers.

A head has a region of pages: room for its history and for the current chunk. Nothing is ever moved: commit and
eviction only change which frame a page stands for. Free pages are given out lowest first, so a region that fills up
is contiguous, and one that is full is read as a whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from ..errors import HeadforceError
from ..policy import FrameSet


class SlotMap:
    """The frames of one region. `slot[frame]` is the page, counted from the start of the region.

    The first `reserved` pages belong to stores that keep parts of frames, for good.
    """

    def __init__(self, pages: int, reserved: int = 0) -> None:
        self.pages = max(pages, reserved)
        self.reserved = reserved
        self.slot: dict[int, int] = {}
        self._free = list(range(reserved, self.pages))

    @property
    def held(self) -> FrameSet:
        """All frames that have a page, those of the current chunk included."""
        return FrameSet.of(self.slot)

    def grow(self, pages: int) -> None:
        """Makes the region at least `pages` pages long; frames stay where they are."""
        for page in range(self.pages, pages):
            heapq.heappush(self._free, page)
        self.pages = max(self.pages, pages)

    def copy(self) -> SlotMap:
        """The same frames in the same pages."""
        twin = SlotMap(self.pages, self.reserved)
        twin.slot, twin._free = dict(self.slot), list(self._free)
        return twin

    def compacted(self, pages: int) -> tuple[SlotMap, list[tuple[int, int]]]:
        """A region of `pages` pages with the same frames, and (old page, new page) of all that moves along."""
        twin = SlotMap(pages, self.reserved)
        twin.take(sorted(self.slot, key=self.slot.__getitem__))
        moves = [(page, page) for page in range(self.reserved)]
        return twin, moves + [(page, twin.slot[frame]) for frame, page in self.slot.items()]

    def keep(self, frames: FrameSet) -> None:
        """Gives up the pages of all frames but these."""
        for frame in [f for f in self.slot if f not in frames]:
            heapq.heappush(self._free, self.slot.pop(frame))

    def take(self, frames: Iterable[int]) -> None:
        """Gives a page to each of these frames that has none; HF-CAPACITY if the region is full."""
        for frame in frames:
            if frame in self.slot:
                continue
            if not self._free:
                raise HeadforceError(
                    "HF-CAPACITY",
                    found=f"frames {self.held} in a region of {self.pages} pages, and frame {frame} besides",
                    needed="room for the history and the current chunk",
                )
            self.slot[frame] = heapq.heappop(self._free)
