"""The plan of a chunk: for every head, which frames each query frame reads and how far each is moved. Pure integers.

Distinct rules are planned once and shared by all the heads and layers that have them. A plan knows frames, not pages:
`tables` turns it into page runs for a pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet, HeadMemory, HeadRule, Item
from ..policy.node import NOTHING_HELD, Held

Cell = tuple[int, int, int]
"""(layer, batch row, head): one head of one video."""

Memories = Mapping[Cell, HeadMemory]
"""What the stateful operators of each cell hold. Heads whose rules have no state are not in it."""


@dataclass(frozen=True)
class Reading:
    """What some query frames of a chunk read, all of them the same frames at the same positions."""

    queries: tuple[int, ...]
    items: tuple[Item, ...]

    @cached_property
    def frames(self) -> npt.NDArray[np.int32]:
        """[k, 2]: (frame, shift) of every frame read, rising. The key of a frame is turned by `shift` frames."""
        pairs = [(f, p - f) for item in self.items for f, p in zip(item.frames, item.positions, strict=True)]
        return np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2)


@dataclass(frozen=True)
class HeadPlan:
    """What one rule reads in a chunk, and the frames that have to be held while the chunk runs."""

    readings: tuple[Reading, ...]
    live: FrameSet

    @cached_property
    def kept(self) -> int:
        """Most committed frames that a query frame reads."""
        return max(len(reading.frames) for reading in self.readings)

    @property
    def remaps(self) -> bool:
        """True when some key has to be turned."""
        return any(bool(reading.frames[:, 1].any()) for reading in self.readings)


@dataclass(frozen=True)
class ChunkPlan:
    """The plan of one chunk. `heads[which[layer, row, head]]` is the plan of a head of one row of the batch."""

    chunk: Chunk
    heads: tuple[HeadPlan, ...]
    which: npt.NDArray[np.int32]

    def of(self, layer: int, head: int, row: int = 0) -> HeadPlan:
        """The plan of one head of one row of the batch."""
        return self.heads[self.which[layer, row, head]]


class Planner:
    """Plans the chunks of a stream of `batch` videos under one policy."""

    def __init__(self, policy: BoundPolicy, batch: int = 1) -> None:
        self.policy = policy
        place = {rule.text: i for i, rule in enumerate(policy.distinct)}
        which = np.array([[place[rule.text] for rule in row] for row in policy.rules], dtype=np.int32)
        self._which = np.repeat(which[:, None], batch, axis=1)
        self._stateful = [bool(rule.rule.stateful) for rule in policy.distinct]

    def plan(self, chunk: Chunk, memories: Memories | None = None) -> ChunkPlan:
        """The plan of `chunk`.

        Raises HF-HORIZON past the policy's horizon, HF-POSITION for a distance outside its `position_range`, and
        HF-DECISION if a head with state has no memory in `memories`.
        """
        self.policy.check_horizon(chunk)
        heads = [
            None if stateful else self._head(rule, chunk, NOTHING_HELD)
            for rule, stateful in zip(self.policy.distinct, self._stateful, strict=True)
        ]
        if all(plan is not None for plan in heads):
            return ChunkPlan(chunk, tuple(plan for plan in heads if plan is not None), self._which)
        return self._with_state(chunk, heads, memories or {})

    def _with_state(self, chunk: Chunk, heads: list[HeadPlan | None], memories: Memories) -> ChunkPlan:
        """Heads with state are planned one by one, and share a plan where they hold the same frames."""
        plans: list[HeadPlan] = [plan for plan in heads if plan is not None]
        where = {i: plans.index(plan) for i, plan in enumerate(heads) if plan is not None}
        which = np.empty_like(self._which)
        seen: dict[tuple[int, tuple[tuple[str, FrameSet], ...]], int] = {}
        for cell, rule in np.ndenumerate(self._which):
            if rule in where:
                which[cell] = where[rule]
                continue
            if cell not in memories:
                raise HeadforceError(
                    "HF-DECISION",
                    site="layer {}, batch row {}, head {}".format(*cell),
                    found=f"no memory for {self.policy.distinct[rule].rule}",
                    needed="one for every head with state",
                )
            held = memories[cell].held
            key = (int(rule), tuple(sorted(held.items())))
            if key not in seen:
                seen[key] = len(plans)
                plans.append(self._head(self.policy.distinct[rule], chunk, held))
            which[cell] = seen[key]
        return ChunkPlan(chunk, tuple(plans), which)

    def _head(self, rule: HeadRule, chunk: Chunk, held: Held) -> HeadPlan:
        readings: list[Reading] = []
        for query in chunk.queries if rule.at(chunk).by_query else [chunk.start]:
            items = rule.read(chunk, query, held)
            if readings and readings[-1].items == items:
                readings[-1] = Reading((*readings[-1].queries, query), items)
            else:
                readings.append(Reading((query,), items))
        if not rule.at(chunk).by_query:
            readings = [Reading(tuple(chunk.queries), readings[0].items)]
        self._check_positions(rule, readings, chunk)
        return HeadPlan(tuple(readings), rule.live(chunk, held))

    def _check_positions(self, rule: HeadRule, readings: Iterable[Reading], chunk: Chunk) -> None:
        allowed = self.policy.policy.position_range
        if allowed is None:
            return
        distances = [
            (abs(query - position), query, frame, item.kind)
            for reading in readings
            for query in (reading.queries[0], reading.queries[-1])
            for item in reading.items
            for frame, position in zip(item.frames, item.positions, strict=True)
        ]
        distances.append((chunk.frames - 1, chunk.stop - 1, chunk.start, "the current chunk"))
        far, query, frame, kind = max(distances)
        if far > allowed:
            raise HeadforceError(
                "HF-POSITION",
                site=f"rule {rule.at(chunk)}",
                found=f"frame {frame} ({kind}) at distance {far} from query frame {query}",
                needed=f"a distance of at most {allowed}",
            )
