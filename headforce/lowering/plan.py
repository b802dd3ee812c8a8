"""The plan of a chunk: for every head, which frames each query frame reads and how far each is moved. Pure integers.

Distinct rules are planned once and shared by all the heads and layers that have them. A plan knows frames, not pages:
`tables` turns it into page runs for a pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet, HeadMemory, HeadRule, Item, PartItem
from ..policy.node import FORGOTTEN, NOTHING_HELD, Held
from ..policy.switch import Amended

Cell = tuple[int, int, int]
"""(layer, batch row, head): one head of one video."""

Memories = Mapping[Cell, HeadMemory]
"""What the stateful operators of each cell hold. Heads whose rules have no state are not in it."""


UNAMENDED = Amended()


@dataclass(frozen=True)
class Reading:
    """What some query frames of a chunk read, all of them the same frames at the same positions."""

    queries: tuple[int, ...]
    items: tuple[Item, ...]
    parts: tuple[PartItem, ...] = ()

    @property
    def read(self) -> tuple[tuple[Item, ...], tuple[PartItem, ...]]:
        """All that is read."""
        return self.items, self.parts

    @cached_property
    def size(self) -> int | float:
        """What is read besides the chunk, in frames."""
        parts = sum((Fraction(1, part.of) for item in self.parts for part in item.parts), Fraction(0))
        size = len(self.frames) + parts
        return int(size) if size.denominator == 1 else float(size)

    @cached_property
    def frames(self) -> npt.NDArray[np.int32]:
        """[k, 2]: (frame, shift) of every frame read, rising. The key of a frame is turned by `shift` frames."""
        pairs = [(f, p - f) for item in self.items for f, p in zip(item.frames, item.positions, strict=True)]
        return np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2)


@dataclass(frozen=True)
class HeadPlan:
    """What one rule reads in a chunk, and the frames that have to be held while the chunk runs.

    `reads_chunk` is false for heads that read nothing at all.
    """

    readings: tuple[Reading, ...]
    live: FrameSet
    reads_chunk: bool = True

    @cached_property
    def kept(self) -> int | float:
        """Most of the past that a query frame reads, in frames."""
        return max(reading.size for reading in self.readings)

    @property
    def remaps(self) -> bool:
        """True when some key has to be turned."""
        return any(
            bool(reading.frames[:, 1].any())
            or any(p.at != at for item in reading.parts for p, at in zip(item.parts, item.positions, strict=True))
            for reading in self.readings
        )


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
        self._amended: Mapping[str, Amended] = {}
        self._stateful = [bool(rule.rule.stateful) for rule in policy.distinct]

    def plan(
        self, chunk: Chunk, memories: Memories | None = None, amended: Mapping[str, Amended] | None = None
    ) -> ChunkPlan:
        """The plan of `chunk`. `amended` is what prompt switches did to the history of rules, by their text.

        Raises HF-HORIZON past the policy's horizon, HF-POSITION for a distance outside its `position_range`, and
        HF-DECISION if a head with state has no memory in `memories`.
        """
        self.policy.check_horizon(chunk)
        self._amended = amended or {}
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
        shared: dict[int, int] = {}  # by memory: heads that decide together have one
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
            memory = memories[cell]
            if id(memory) not in shared:
                held = memory.held
                key = (int(rule), tuple(sorted(held.items())))
                if key not in seen:
                    seen[key] = len(plans)
                    plans.append(self._head(self.policy.distinct[rule], chunk, held))
                shared[id(memory)] = seen[key]
            which[cell] = shared[id(memory)]
        return ChunkPlan(chunk, tuple(plans), which)

    def _head(self, rule: HeadRule, chunk: Chunk, held: Held) -> HeadPlan:
        readings: list[Reading] = []
        amended = self._amended.get(rule.text, UNAMENDED)
        if amended.forgotten:
            held = {**held, FORGOTTEN: amended.forgotten}
        for query in chunk.queries if rule.at(chunk).by_query else [chunk.start]:
            one = Reading((query,), rule.read(chunk, query, held), rule.at(chunk).read_parts(chunk, query, held))
            one = _moved(one, amended) if amended.cuts else one
            if readings and readings[-1].read == one.read:
                readings[-1] = replace(one, queries=(*readings[-1].queries, query))
            else:
                readings.append(one)
        if not rule.at(chunk).by_query:
            readings = [replace(readings[0], queries=tuple(chunk.queries))]
        self._check_positions(rule, readings, chunk)
        return HeadPlan(tuple(readings), rule.live(chunk, held), rule.at(chunk).reads_chunk)

    def _check_positions(self, rule: HeadRule, readings: Iterable[Reading], chunk: Chunk) -> None:
        allowed = self.policy.policy.position_range
        if allowed is None:
            return
        items: list[tuple[Reading, Item | PartItem]] = []
        for reading in readings:
            items += [(reading, item) for item in reading.items]
            items += [(reading, part_item) for part_item in reading.parts]
        first = chunk.start - chunk.lead
        distances = [
            (abs(query - position), query, frame, item.kind)
            for reading, item in items
            for query in (first if chunk.start in reading.queries else reading.queries[0], reading.queries[-1])
            for frame, position in zip(item.stand, item.positions, strict=True)
        ]
        distances.append((chunk.stop - 1 - first, chunk.stop - 1, first, "the current chunk"))
        far, query, frame, kind = max(distances)
        if far > allowed:
            raise HeadforceError(
                "HF-POSITION",
                site=f"rule {rule.at(chunk)}",
                found=f"frame {frame} ({kind}) at distance {far} from query frame {query}",
                needed=f"a distance of at most {allowed}",
            )


def _moved(reading: Reading, amended: Amended) -> Reading:
    """The reading with everything in front of a cut seen from as much farther away."""

    def positions(item: Item | PartItem) -> tuple[int, ...]:
        return tuple(p - amended.moved(frame) for frame, p in zip(item.stand, item.positions, strict=True))

    return replace(
        reading,
        items=tuple(replace(item, positions=positions(item)) for item in reading.items),
        parts=tuple(replace(item, positions=positions(item)) for item in reading.parts),
    )
