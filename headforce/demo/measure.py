"""Runs all sides in step and takes down what happens."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass

from torch._dynamo.utils import counters

from ..lowering.footprint import Footprint, footprint
from ..policy import BoundPolicy, Schedule
from ..presets import read_policy
from .history import History
from .progress import Progress
from .runner import in_step, relative_error
from .settings import CHUNK, Settings
from .sides import Sides


@dataclass
class Measured:
    """Everything that checks, pictures and report need.

    `predicted_bytes` are those of K and V in the last chunk, `predicted_peak` the most at any time. `load` is the load
    average of the machine before and after.
    """

    settings: Settings
    sides: Sides
    evicting: list[int]
    history: History
    predicted_bytes: int
    predicted_peak: int
    dense_bytes: int
    graph_breaks: int
    control_error: float
    seconds: float
    load: tuple[float, float]

    def error(self, name: str, reference: str) -> float:
        """How far the video of one side is from that of another."""
        return relative_error(self.sides.runners[name].video, self.sides.runners[reference].video)

    @property
    def policy(self) -> BoundPolicy:
        """The policy for this model, with the classes that its heads have got."""
        return self.sides.bound

    @property
    def passes(self) -> int:
        """Forwards of one side."""
        return self.settings.chunks * self.passes_per_chunk

    @property
    def passes_per_chunk(self) -> int:
        """Noisy passes and the clean one."""
        return len(self.sides.timesteps) + 1


def measure(settings: Settings, progress: Progress, stack: ExitStack) -> Measured:
    """Runs the demo. `stack` takes back what was done to models."""
    begin, load = time.perf_counter(), os.getloadavg()[0]
    breaks = sum(counters["graph_break"].values())
    policy = read_policy(settings.policy_name, settings.labels_file)
    sides = Sides(settings)
    config, runners = sides.config, sides.runners
    evicting = settings.evicting(config.cache_frames)
    settings.check_classify(policy)
    sides.build(policy, stack)
    history = History(2 * config.tokens_per_frame * config.head_dim * sides.context.itemsize)
    progress.begin([runner.title for runner in runners.values()], settings.chunks * (len(sides.timesteps) + 1))
    for runner, done in in_step(list(runners.values())):
        progress.advance(runner.title)
        if runner.name == "policy":
            sides.follow()
        if runner.name == "policy" and done.step == 0:
            assert runner.session is not None
            history.record(runner.session)
    dense = runners["dense"].rollout.kv_cache
    predicted, peak = _predicted(sides, settings.chunks, history.frame_bytes)
    return Measured(
        settings=settings,
        sides=sides,
        evicting=evicting,
        history=history,
        predicted_bytes=predicted,
        predicted_peak=peak,
        dense_bytes=sum(cache[name].nbytes for cache in dense for name in ("k", "v")),
        graph_breaks=sum(counters["graph_break"].values()) - breaks,
        control_error=sides.control_error(),
        seconds=time.perf_counter() - begin,
        load=(load, os.getloadavg()[0]),
    )


def _predicted(sides: Sides, chunks: int, frame_bytes: int) -> tuple[int, int]:
    """Bytes in the last chunk and at most, as `headforce plan` has them."""

    def size(policy: BoundPolicy) -> Footprint:
        return footprint(policy, Schedule((CHUNK,) * chunks), frame_bytes)

    peak, after = size(sides.first).pool_bytes, size(sides.bound)
    warmup = sides.given.warmup.chunks if sides.given.warmup else 0
    return (after.steady_bytes + after.current_bytes if chunks > warmup else peak), peak
