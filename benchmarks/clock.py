"""Times of work on a GPU."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import torch

FLUSH = 2**31
"""Bytes that are written before each run."""


class Clock:
    """Times work on a GPU. On a CPU it takes no times: they would say nothing about a GPU."""

    def __init__(self, device: torch.device, budget: float) -> None:
        """`budget`: milliseconds to spend on one median, about."""
        self.on, self.budget = device.type == "cuda", budget
        self.flush = torch.empty(FLUSH if self.on else 0, dtype=torch.int8, device=device)

    def __call__(self, run: Callable[[], object], short: bool = False) -> float | None:
        """The median time of `run` in milliseconds, after a warm-up."""
        if not self.on:
            return None
        run()
        about = statistics.median(self._times(run, 2))
        least, budget = (2, self.budget / 4) if short else (5, self.budget)
        repeats = min(100, max(least, math.ceil(budget / about)))
        self._times(run, repeats // 2)
        return statistics.median(self._times(run, repeats))

    def _times(self, run: Callable[[], object], repeats: int) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in events:
            self.flush.zero_()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]
