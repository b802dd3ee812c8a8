"""What captures a pass and replays it: CUDA graphs, and whatever stands in for them in a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol

import torch

from ..errors import HeadforceError
from ..lowering.targets import capturable


class Recording(NamedTuple):
    """A captured pass. `replay` runs it once more on the same memory, and leaves its results in `outputs`."""

    replay: Callable[[], None]
    outputs: Sequence[Any]


class Recorder(Protocol):
    """Captures passes."""

    def alone(self) -> AbstractContextManager[None]:
        """What runs inside has buffers, and the memory of captured passes, to itself: on the device too."""

    def record(self, run: Callable[[], Sequence[Any]]) -> Recording:
        """Captures what `run` does. It need not have been done: the pass counts from the first replay on."""


class CudaGraphs:
    """CUDA graphs that share one pool of memory: nothing in it outlives a replay, since results are copied out."""

    def __init__(self, device: torch.device, target: str) -> None:
        if not capturable(target):
            raise HeadforceError(
                "HF-CUDAGRAPHS",
                site="cudagraphs",
                found=f"target {target}, which asks the device for its tables",
                needed="target triton or hopper",
            )
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()
        self._last = torch.cuda.Event()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._lock:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._last)  # that of another video may still run on its own stream
            try:
                yield
            finally:
                self._last.record(stream)

    def record(self, run: Callable[[], Sequence[Any]]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                outputs = run()
        except RuntimeError as error:
            raise HeadforceError(
                "HF-CUDAGRAPHS",
                site="cudagraphs",
                found=f"a pass that CUDA does not capture: {str(error).splitlines()[0]}",
                needed="a model that never waits for the device, or cudagraphs=False",
            ) from error
        return Recording(graph.replay, outputs)


RECORDERS: dict[str, Callable[[torch.device, str], Recorder]] = {"cuda": CudaGraphs}
"""Device type -> what captures passes there, for a device and a target."""


def find_recorder(device: torch.device, target: str) -> Recorder:
    """What captures passes on `device`; HF-CUDAGRAPHS where nothing does."""
    if device.type not in RECORDERS or (device.type == "cuda" and torch.version.hip):
        raise HeadforceError(
            "HF-CUDAGRAPHS", site="cudagraphs", found=f"tensors on {device.type}", needed="a CUDA device"
        )
    return RECORDERS[device.type](device, target)
