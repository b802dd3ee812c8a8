"""A prediction for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.table import Table

from ..lowering.footprint import Footprint
from .machine import Machine
from .predict import Parts, Prediction
from .shape import Shape


def table(prediction: Prediction, shape: Shape, machine: Machine, size: Footprint) -> Table:
    """Time of a chunk by part, while the window fills and at the end, and bytes of K and V; headforce and dense."""
    chunks = tuple(prediction.schedule)
    picked = dict.fromkeys((len(chunks) // 4, len(chunks) - 1))
    words = f"{shape.passes} passes a chunk, {machine.dtype}, {machine.target}, on {machine.device}"
    grid = Table(title=f"Predicted: {words}, {machine.threads} threads", title_justify="left")
    grid.add_column("ms")
    for i in picked:
        for side in ("headforce", "dense"):
            grid.add_column(f"frame {chunks[i].start}, {side}", justify="right")
    sides = [side[i] for i in picked for side in (prediction.policy, prediction.dense)]
    for part in fields(Parts):
        grid.add_row(part.name, *(f"{1e3 * getattr(parts, part.name):.4g}" for parts in sides))
    grid.add_row("a chunk", *(f"{1e3 * parts.total:.4g}" for parts in sides))
    ratios = [prediction.policy[i].total / prediction.dense[i].total for i in picked]
    grid.add_row("headforce / dense", *(cell for ratio in ratios for cell in (f"{ratio:.2f}", "")))
    grid.add_row("the video, s", *[""] * (len(sides) - 2), *(f"{seconds(side):.4g}" for side in _sides(prediction)))
    grid.add_row("K and V, MiB", *(f"{n / 2**20:.4g}" for _ in picked for n in (size.pool_bytes, size.dense_bytes)))
    return grid


def seconds(parts: Sequence[Parts]) -> float:
    """Of all chunks."""
    return sum(chunk.total for chunk in parts)


def _sides(prediction: Prediction) -> tuple[Sequence[Parts], Sequence[Parts]]:
    return prediction.policy, prediction.dense
