"""Bytes of a policy before anything runs: what its history holds against the cache of the unmodified model."""

from __future__ import annotations

from dataclasses import dataclass

from ..policy import BoundPolicy, Capacity, Policy, Schedule

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Footprint:
    """Frames per head and bytes of K and V.

    `capacity[layer][head]` is in frames; `history_bytes` is the room for it, `steady_bytes` what is left of that once
    the warm-up is over, `current_bytes` the room for the chunk being denoised, `pool_bytes` history and chunk,
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
    capacity = _capacities(policy, schedule)
    cells = policy.layers * policy.heads
    current = max(schedule.sizes) * cells * frame_bytes
    dense = 0
    if policy.native is not None:
        own = Policy({"native": policy.native}, default="native", horizon=schedule.frames)
        dense = _frames(_capacities(own.bind(layers=1, heads=1), schedule)) * cells * frame_bytes + current
    steady = sum(head.steady for row in capacity for head in row)
    return Footprint(capacity, _frames(capacity) * frame_bytes, steady * frame_bytes, current, dense)


def _capacities(policy: BoundPolicy, schedule: Schedule) -> tuple[tuple[Capacity, ...], ...]:
    chunks = tuple(schedule)
    each = {rule.text: policy.capacity(rule, chunks) for rule in policy.distinct}
    return tuple(tuple(each[rule.text] for rule in row) for row in policy.rules)


def _frames(capacity: tuple[tuple[Capacity, ...], ...]) -> int:
    return sum(head.peak for row in capacity for head in row)
