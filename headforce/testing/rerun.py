"""A stand-in for CUDA graphs on any device: captures by taking down what was run, and replays by running it again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..kvpass.cuda_graphs import RECORDERS, Recording


class Rerun:
    """Like a CUDA graph it computes nothing when it captures, takes no arguments when it replays, and leaves results
    where they were captured."""

    def __init__(self, device: torch.device, target: str) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._lock:
            yield

    def record(self, run: Callable[[], Sequence[Any]]) -> Recording:
        outputs = [t.clone() if isinstance(t, Tensor) else t for t in run()]
        tensors = [t for t in outputs if isinstance(t, Tensor)]
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)  # what nobody replays shows

        def replay() -> None:
            for kept, new in zip(tensors, (t for t in run() if isinstance(t, Tensor)), strict=True):
                kept.copy_(new)

        return Recording(replay, outputs)


@contextmanager
def rerunning(device: str = "cpu") -> Iterator[None]:
    """Inside, graphs that are compiled for devices of this type capture with `Rerun`."""
    before = RECORDERS.get(device)
    RECORDERS[device] = Rerun
    try:
        yield
    finally:
        if before is None:
            del RECORDERS[device]
        else:
            RECORDERS[device] = before
