"""The time of every chunk of a video, by part, from counts of work and the times of a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..errors import HeadforceError
from ..lowering.plan import ChunkPlan, Reading
from ..lowering.preview import preview
from ..policy import BoundPolicy, Chunk, HeadRule, Policy, Schedule
from .machine import Machine, Table
from .shape import Attended, Linear, Shape

GROUPED = ("sdpa", "reference")
"""Targets that call attention once for every group of heads with equal plans; others launch a layer at once."""


@dataclass(frozen=True)
class Parts:
    """Seconds of a chunk, over all its passes.

    Attributes:
        linear: matrix products. attention: self- and cross-attention. rest: norms, modulation, RoPE, activations.
        cache: writing K and V, moving them, turning them. host: planning, tables, and what surrounds a compiled pass.
    """

    linear: float = 0.0
    attention: float = 0.0
    rest: float = 0.0
    cache: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(self))

    def to_json(self) -> dict[str, float]:
        """The parts and their sum, as plain data."""
        return {**vars(self), "total": self.total}


@dataclass(frozen=True)
class Work:
    """What a chunk asks for besides the products.

    Attributes:
        attended: every group of heads of a layer that read alike, and how often there is one such, over all layers.
        turned: keys that such a group turns to another position, and how often. rules: that are planned.
    """

    frames: int
    attended: Counter[Attended] = field(default_factory=Counter)
    turned: Counter[int] = field(default_factory=Counter)
    rules: int = 0

    def flops(self, head_dim: int) -> float:
        """Of self-attention, over all layers."""
        return sum(count * one.flops(head_dim) for one, count in self.attended.items())


@dataclass(frozen=True)
class Prediction:
    """Chunk by chunk: `policy` under headforce, `dense` the model as it is, eager."""

    schedule: Schedule
    policy: tuple[Parts, ...]
    dense: tuple[Parts, ...]

    def to_json(self) -> dict[str, Any]:
        """The prediction as plain data."""
        return {name: [parts.to_json() for parts in getattr(self, name)] for name in ("policy", "dense")}


def predict(policy: BoundPolicy, schedule: Schedule, shape: Shape, machine: Machine) -> Prediction:
    """The time of every chunk of `schedule` under `policy`, and of the unmodified model, whose rule is `policy.native`.

    The model is a transformer like Wan (`Shape`) and nothing of its text is counted after the first pass. Heads with
    state are taken at their busiest. HF-MACHINE-FILE if the machine was not measured with the dtype of the shape.
    """
    if machine.dtype != shape.dtype:
        raise HeadforceError(
            "HF-MACHINE-FILE",
            found=f"a machine measured with {machine.dtype}",
            needed=f"one measured with {shape.dtype}",
        )
    times = _Times(shape, machine)
    ours = tuple(times.ours(i, work) for i, work in enumerate(works(policy, schedule, shape)))
    native = _native(policy, schedule)
    before: list[Chunk | None] = [None, *schedule]
    dense = tuple(
        times.dense(i, chunk, _past(native, chunk), 0 if last is None else _past(native, last) + last.frames)
        for i, (chunk, last) in enumerate(zip(schedule, before, strict=False))
    )
    return Prediction(schedule, ours, dense)


def works(policy: BoundPolicy, schedule: Schedule, shape: Shape) -> Iterator[Work]:
    """The work of every chunk under a policy."""
    for plan in preview(policy, schedule):
        yield _work(plan, shape)


def _native(policy: BoundPolicy, schedule: Schedule) -> HeadRule:
    """The rule of the unmodified model. HF-NATIVE if nobody says what it reads."""
    own = Policy({}, horizon=schedule.frames).bind(layers=1, heads=1, native=policy.native)
    return own.distinct[0]


def _past(native: HeadRule, chunk: Chunk) -> int:
    """Frames that the unmodified model reads besides the chunk."""
    return len(native.at(chunk).frames(chunk, chunk.start))


def _work(plan: ChunkPlan, shape: Shape) -> Work:
    attended: Counter[Attended] = Counter()
    turned: Counter[int] = Counter()
    for layer in plan.which:
        for which, heads in Counter(np.asarray(layer[0]).tolist()).items():
            head = plan.heads[which]
            if not head.reads_chunk:
                continue
            for reading in head.readings:
                keys = (reading.size + plan.chunk.frames) * shape.tokens
                rows = len(reading.queries) * shape.tokens
                attended[Attended(heads, rows, keys, shape.batch)] += 1
                turned[heads * _turned(reading) * shape.tokens] += shape.batch
    return Work(plan.chunk.frames, attended, turned, len(plan.heads))


def _turned(reading: Reading) -> int:
    """Frames that are read at another position than their own."""
    return int(np.count_nonzero(reading.frames[:, 1])) if len(reading.frames) else 0


class _Times:
    def __init__(self, shape: Shape, machine: Machine) -> None:
        self.shape, self.machine = shape, machine

    def ours(self, index: int, work: Work) -> Parts:
        """A chunk under headforce."""
        shape, machine = self.shape, self.machine
        layers, passes, elements = shape.layers, shape.passes, shape.rows(work.frames) * shape.dim
        launches = dict(self._launches(work))
        attention = sum(count * self._ragged(one) for one, count in launches.items())
        # A launch is made once for a layer, also where it holds several groups.
        attention -= max(0, sum(launches.values()) - layers) * machine.host.launch
        turned = 0.0
        if machine.target in GROUPED:  # others turn queries instead
            turned = sum(count * machine.turn.at(keys * shape.head_dim) for keys, count in work.turned.items())
        host = machine.host
        planning = host.chunk + host.rule * work.rules + host.cell * layers * shape.heads * shape.batch
        return Parts(
            linear=self._linear(index, work.frames),
            attention=passes * (attention + self._cross(work.frames)),
            rest=passes * self._rest(work.frames, machine.inner),
            cache=passes * (layers * machine.write.at(2 * elements) + turned),
            host=planning + passes * (host.call + layers * host.site),
        )

    def dense(self, index: int, chunk: Chunk, past: int, held: int) -> Parts:
        """A chunk of the model as it is, eager. `past`: frames that it reads; `held`: those in the cache before it."""
        shape, machine, passes = self.shape, self.machine, self.shape.passes
        row = 2 * shape.dim * shape.itemsize  # bytes of K and V of one token, all heads
        # What stays is copied out and back in, once for each chunk that evicts. A copy reads and writes.
        moved = 4 * past * row * shape.tokens * shape.batch if past < held else 0
        written = 2 * shape.rows(chunk.frames) * row
        one = shape.dense(chunk.frames, past)
        return Parts(
            linear=self._linear(index, chunk.frames),
            attention=passes * (shape.layers * self._dense(one) + self._cross(chunk.frames)),
            rest=passes * self._rest(chunk.frames, "eager"),
            cache=shape.layers * (machine.copy.at(moved) + passes * machine.copy.at(written)),
        )

    def _launches(self, work: Work) -> Iterator[tuple[Attended, float]]:
        """What attention is called with, and how often: group by group, or for a layer at once with the mean of it."""
        if self.machine.target in GROUPED:
            yield from work.attended.items()
            return
        shape = self.shape
        rows = work.frames * shape.tokens
        pairs = sum(count * one.heads * one.rows * one.keys for one, count in work.attended.items())
        yield Attended(shape.heads, rows, pairs / (shape.layers * shape.heads * rows), shape.batch), shape.layers

    def _linear(self, index: int, frames: int) -> float:
        seconds = self.shape.passes * sum(map(self._product, self.shape.linears(frames)))
        return seconds + (sum(map(self._product, self.shape.of_text())) if index == 0 else 0.0)

    def _product(self, one: Linear) -> float:
        return one.count * self.machine.linear.at(one.rows, one.inputs * one.outputs)

    def _rest(self, frames: int, inner: str) -> float:
        shape, machine = self.shape, self.machine
        rows = shape.rows(frames)
        layer = machine.rest[inner].at(rows * shape.dim)
        layer += machine.activation[inner].at(rows * shape.ffn) + machine.between.at(rows * shape.dim)
        return shape.layers * layer + machine.ends.at(rows * shape.dim)

    def _cross(self, frames: int) -> float:
        return self.shape.layers * self._dense(self.shape.cross(frames))

    def _dense(self, one: Attended) -> float:
        table, scale = self._of_dim(self.machine.dense)
        return scale * table.at(one.batch * one.heads, one.rows, one.keys)

    def _ragged(self, one: Attended) -> float:
        table, scale = self._of_dim(self.machine.ragged)
        if self.machine.target in GROUPED:
            return one.batch * scale * table.at(one.heads, one.rows, one.keys / one.rows)
        return scale * table.at(one.batch * one.heads, one.rows, one.keys / one.rows)

    def _of_dim(self, tables: Mapping[int, Table]) -> tuple[Table, float]:
        """The table of the nearest head dim, and a factor on its times."""
        dim = min(tables, key=lambda measured: abs(measured - self.shape.head_dim))
        return tables[dim], max(1.0, self.shape.head_dim / dim)
