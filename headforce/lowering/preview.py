"""A policy over a whole stream, without a model: the plan of every chunk, and the JSON form that other tools read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..policy import BUSIEST, BoundPolicy, Chunk, HeadMemory, Schedule
from ..policy.memory import Commit
from .footprint import Footprint
from .plan import ChunkPlan, HeadPlan, Planner, Reading

JSON_VERSION = 1


def preview(policy: BoundPolicy, schedule: Schedule) -> Iterator[ChunkPlan]:
    """The plan of every chunk of `schedule`.

    Without a model nobody can say what is novel: heads with state are shown at their busiest, every unit written, and
    selections as the newest of their candidates.
    """
    planner = Planner(policy)
    rule_of = {rule.text: rule for rule in policy.distinct if rule.rule.stateful}
    one_of = {text: HeadMemory(rule.rule) for text, rule in rule_of.items()}
    memories = {
        (layer, 0, head): one_of[rule.text]
        for layer, row in enumerate(policy.rules)
        for head, rule in enumerate(row)
        if rule.rule.stateful
    }
    before: Chunk | None = None
    for chunk in schedule:
        if before is not None:
            for text, memory in one_of.items():
                memory.commit(before, chunk, BUSIEST, Commit(rule_of[text].rules_at(before)))
        yield planner.plan(chunk, memories)
        before = chunk


def to_json(policy: BoundPolicy, schedule: Schedule, size: Footprint) -> dict[str, Any]:
    """The plan as plain data: what every query frame reads, and the capacity of every head. See docs/policy.md."""
    chunks = []
    for plan in preview(policy, schedule):
        heads = [_readings(head) for head in plan.heads]
        read = {
            str(layer): {str(head): heads[which] for head, which in enumerate(row)}
            for layer, row in enumerate(plan.which[:, 0])
        }
        chunks.append({"start": plan.chunk.start, "frames": plan.chunk.frames, "read": read})
    return {
        "version": JSON_VERSION,
        "chunks": chunks,
        "capacity_frames": {
            str(layer): {str(head): {"peak": c.peak, "steady": c.steady} for head, c in enumerate(row)}
            for layer, row in enumerate(size.capacity)
        },
        "history_bytes": size.history_bytes,
        "steady_bytes": size.steady_bytes,
        "current_bytes": size.current_bytes,
        "pool_bytes": size.pool_bytes,
        "dense_bytes": size.dense_bytes,
    }


def _readings(head: HeadPlan) -> list[dict[str, Any]]:
    return [
        {
            "q": list(reading.queries),
            "items": [
                {"kind": item.kind, "frames": list(item.frames), "pos": list(item.positions)} for item in reading.items
            ],
        }
        | _parts(reading)
        for reading in head.readings
    ]


def _parts(reading: Reading) -> dict[str, Any]:
    """Parts of frames, where there are any: what they were made of, and where they are seen."""
    if not reading.parts:
        return {}
    return {
        "parts": [
            {
                "kind": item.kind,
                "store": item.store,
                "frames": [list(part.frames) for part in item.parts],
                "segment": [part.index for part in item.parts],
                "of": [part.of for part in item.parts],
                "pos": list(item.positions),
            }
            for item in reading.parts
        ]
    }
