"""One side of the comparison: a model, compiled or not, with its rollout and the time of every pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from ..kvpass.session import Session


@dataclass(frozen=True)
class PassTime:
    """Wall-clock seconds of one forward, and how many graphs were compiled in it."""

    chunk: int
    step: int
    seconds: float
    graphs: int


@dataclass
class Runner:
    """`title` is for people; `passes` runs one forward of `rollout`, the example's `Rollout`, each time it is asked."""

    name: str
    title: str
    rollout: Any
    passes: Iterator[Any]
    session: Session | None = None
    times: list[PassTime] = field(default_factory=list)
    finished: list[Tensor] = field(default_factory=list)

    def step(self) -> Any:
        """Runs the next pass."""
        graphs, begin = counters["stats"]["unique_graphs"], time.perf_counter()
        done = next(self.passes)
        seconds = time.perf_counter() - begin
        self.times.append(PassTime(done.chunk, done.step, seconds, counters["stats"]["unique_graphs"] - graphs))
        if done.clean:
            self.finished.append(done.x0)
        return done

    @property
    def video(self) -> Tensor:
        """The latents of all finished chunks, [B, channels, frames, height, width]."""
        return torch.cat(self.finished, dim=2)

    @property
    def graphs(self) -> int:
        """Graphs compiled while this side ran. Sides of one compiler share graphs: the first pays for them."""
        return sum(one.graphs for one in self.times)

    def graphs_after(self, chunk: int) -> int:
        """Graphs compiled after chunk number `chunk`."""
        return sum(one.graphs for one in self.times if one.chunk > chunk)

    @property
    def compile_seconds(self) -> float:
        """Time of the passes in which something was compiled; their own work is part of it."""
        return sum(one.seconds for one in self.times if one.graphs)

    def chunk_seconds(self, since: int) -> float:
        """A chunk's time: for each of its passes the median over chunks from `since` on, compiling passes left out."""
        steps: dict[int, list[float]] = {}
        for one in self.times:
            if one.chunk >= since and not one.graphs:
                steps.setdefault(one.step, []).append(one.seconds)
        return sum(median(seconds) for seconds in steps.values())


def compile_model(model: nn.Module, backend: str, whole: bool, options: Mapping[str, Any] | None) -> nn.Module:
    """The model compiled as a whole, or block by block: then the blocks share their graphs and compile sooner."""
    settings = None if options is None else dict(options)
    if whole:
        return torch.compile(model, backend=backend, options=settings)  # type: ignore[return-value]
    for block in model.get_submodule("blocks").children():
        block.compile(backend=backend, options=settings)
    return model


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """The largest deviation, as a share of the largest value."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def in_step(runners: Sequence[Runner]) -> Iterator[tuple[Runner, Any]]:
    """All rollouts pass by pass, one side after the other, so that a busy machine slows all sides alike."""
    while True:
        for runner in runners:
            try:
                done = runner.step()
            except StopIteration:
                return
            yield runner, done
