"""The time of something short, on the CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch


class Stopwatch:
    """Times functions. A call costs about `budget` seconds.

    Others that use the machine only ever make it slower, so of all repeats the lower quartile counts. `now` is the
    clock: where one thread works on a busy CPU, `time.process_time` says more.
    """

    def __init__(
        self, device: torch.device, budget: float = 0.05, least: int = 5, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._budget, self._least, self.now = device, budget, least, now

    def __call__(self, *runs: Callable[[], object]) -> float:
        """Seconds of one of `runs`, which are equal but for the memory that they use and take turns."""
        runs[0]()
        first = self.once(runs[-1])
        repeats = max(self._least, min(1000, int(self._budget / max(first, 1e-7))))
        return lower_quartile([self.once(runs[i % len(runs)]) for i in range(repeats)])

    def once(self, run: Callable[[], object]) -> float:
        """Seconds of one call, without a warm-up."""
        self._wait()
        begin = self.now()
        run()
        self._wait()
        return self.now() - begin

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def lower_quartile(seconds: Sequence[float]) -> float:
    """A quarter of the values is below it."""
    return sorted(seconds)[len(seconds) // 4]
