"""What the policy's side holds and reads, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from ..kvpass.session import Session
from ..lowering.plan import ChunkPlan
from ..lowering.stream import Stream
from ..policy import BoundPolicy

Cell = tuple[int, int]
"""(layer, head)"""


@dataclass
class History:
    """Each list has one entry for each chunk; `frame_bytes` is K and V of one frame of one head."""

    frame_bytes: int
    plans: list[ChunkPlan] = field(default_factory=list)
    past: list[dict[Cell, Fraction]] = field(default_factory=list)
    """What every head holds of the past, in frames."""
    current: list[int] = field(default_factory=list)
    """Bytes of the current chunk."""
    pool: list[int] = field(default_factory=list)
    """Bytes of the pools, used or not."""

    def record(self, session: Session) -> None:
        """Takes down the chunk that the only stream of `session` is at."""
        (caches,) = session.cache_sets
        stream = caches.stream
        assert stream is not None
        assert stream.chunk is not None
        assert stream.plan is not None
        self.plans.append(stream.plan)
        self.pool.append(session.pool_bytes)
        self.current.append(stream.chunk.frames * stream.lane_of.size * self.frame_bytes)
        self.past.append({cell: _past(stream, *cell) for cell in _cells(stream.policy)})

    def kept(self, cells: Sequence[Cell]) -> list[int | float]:
        """The most past frames that one of these heads reads."""
        return [max(plan.of(*cell).kept for cell in cells) for plan in self.plans]

    def used(self, cells: Sequence[Cell]) -> list[int]:
        """Bytes of past frames, and of parts of them, that these heads hold."""
        return [int(sum(past[cell] for cell in cells) * self.frame_bytes) for past in self.past]


def classes(policy: BoundPolicy) -> dict[str, list[Cell]]:
    """class -> its heads."""
    found: dict[str, list[Cell]] = {}
    for cell in _cells(policy):
        found.setdefault(policy.classes[cell[0]][cell[1]] or "native", []).append(cell)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[1])))


def _cells(policy: BoundPolicy) -> Iterator[Cell]:
    yield from np.ndindex(policy.layers, policy.heads)


def _past(stream: Stream, layer: int, head: int) -> Fraction:
    """What a head holds of the past, in frames: whole ones, and parts as far as a store has made them."""
    assert stream.chunk is not None
    lane = stream.lane(layer, head)
    return len(lane.slots.held) - stream.chunk.frames + sum((Fraction(1, of) for *_, of in lane.where()), Fraction(0))
