"""Times of work on a GPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch

FLUSH = 2**31
"""Bytes that are written before each run."""

CYCLES = 2_000_000
"""Of a GPU in a millisecond, or a few more."""

LONGEST_LEAD = 5.0
"""Milliseconds that the device spins at most: who queues longer waits for the device, and no lead helps."""


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
        lead = self._lead(run)
        about = statistics.median(self._times(run, 2, lead))
        least, budget = (2, self.budget / 4) if short else (5, self.budget)
        repeats = min(100, max(least, math.ceil(budget / about)))
        self._times(run, repeats // 2, lead)
        return statistics.median(self._times(run, repeats, lead))

    def _lead(self, run: Callable[[], object]) -> float:
        """Milliseconds that the host needs to queue `run`, twice over."""
        spent = []
        for _ in range(3):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            spent.append((time.perf_counter() - begin) * 1e3)
        return min(LONGEST_LEAD, 2 * statistics.median(spent))

    def _times(self, run: Callable[[], object], repeats: int, lead: float) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for begin, end in events:
            # The flush alone is over in less than a millisecond. On a slow host a run of two launches would then be
            # timed with the gap between them, and one of a single launch without: first all of it is to be queued.
            torch.cuda._sleep(int(lead * CYCLES))
            self.flush.zero_()
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]
