"""Bytes of a policy before anything runs: what its history holds against the cache of the unmodified model."""

from __future__ import annotations

from dataclasses import dataclass

from ..policy import BoundPolicy, Capacity, HeadRule, Policy, Schedule
from ..policy.symbolic import limit

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Footprint:
    """Frames per head and bytes of K and V.

    `capacity[layer][head]` is what is held at most in the schedule, in frames. `history_bytes` is the room that pools
    have for it, which is that of a stream that goes on in chunks of the same sizes; `steady_bytes` what is left of that
    once the warm-up is over, `current_bytes` the room for the chunk being denoised, `pool_bytes` history and chunk,
    `dense_bytes` the same for `native()`.
    """

    capacity: tuple[tuple[Capacity, ...], ...]
    history_bytes: int
    steady_bytes: int
    current_bytes: int
    dense_bytes: int

    @property
    def pool_bytes(self) -> int:
        return self.history_bytes + self.current_bytes


def footprint(policy: BoundPolicy, schedule: Schedule, frame_bytes: int) -> Footprint:
    """The bytes of `policy` over `schedule`, where one frame of one head takes `frame_bytes` bytes of K and V."""
    cells = policy.layers * policy.heads
    current = max(schedule.sizes) * cells * frame_bytes
    rooms = {rule.text: _rooms(policy, rule, schedule) for rule in policy.distinct}
    history, steady = (sum(rooms[rule.text][i] for row in policy.rules for rule in row) * frame_bytes for i in (0, 1))
    dense = 0
    if policy.native is not None:
        # A model that forgets nothing has a cache as long as its videos.
        endless = limit(policy.native, 1) is None
        own = Policy(
            {"native": policy.native}, "native", horizon=policy.policy.horizon or endless * schedule.frames or None
        )
        bound = own.bind(layers=1, heads=1)
        dense = _rooms(bound, bound.rules[0][0], schedule)[0] * cells * frame_bytes + current
    return Footprint(_capacities(policy, schedule), history, steady, current, dense)


def _rooms(policy: BoundPolicy, rule: HeadRule, schedule: Schedule) -> tuple[int, int]:
    """Pages of history that a pool has for a head at first, and once the warm-up is over: see `Stream._make_room`."""
    most = max(schedule.sizes)
    first = settled = longest = 0
    rhythms: set[tuple[int, int]] = set()
    for chunk in schedule:
        longest = max(longest, chunk.frames)
        if chunk.index == rule.warmup_chunks > 0:  # pools are laid out anew
            settled, longest, rhythms = 0, chunk.frames, set()
        rhythm = (chunk.frames, chunk.start % chunk.frames)
        if rhythm not in rhythms:
            rhythms.add(rhythm)
            settled = max(settled, policy.room(rule, chunk, longest) + chunk.frames)
            first = max(first, settled)
    return first - most, max(settled - most, 0)


def _capacities(policy: BoundPolicy, schedule: Schedule) -> tuple[tuple[Capacity, ...], ...]:
    chunks = tuple(schedule)
    each = {rule.text: policy.capacity(rule, chunks) for rule in policy.distinct}
    return tuple(tuple(each[rule.text] for rule in row) for row in policy.rules)
