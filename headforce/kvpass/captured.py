"""A compiled graph that is captured, and replayed for as long as its memory stays where it is.

Pools, tables and weights keep their addresses over passes, chunks and evictions, so they are read where they are. What
a model is called with anew each time is copied into buffers of our own first. The second call that finds everything
in the same place is captured: graphs that run once are not, and whatever is set up lazily has been by then. A call that
finds something elsewhere (pools laid out anew, other weights, another video's caches) starts over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.watch import watcher
from .cuda_graphs import Recorder, Recording
from .parted import Parted

MOST = 512
"""Captures of one graph that are kept: compiled block by block, every layer of every video that is open has its own."""


class Captured:
    """Runs a graph that was cut in two; see `parted`.

    Args:
        compiled: the body. recorder: what captures it, on `device`.

    Attributes:
        captures, replays: how often the body was captured, and replayed.
    """

    def __init__(
        self, parts: Parted, compiled: Callable[..., Sequence[Any]], recorder: Recorder, device: torch.device
    ) -> None:
        self.captures = self.replays = 0
        self._parts, self._compiled, self._recorder, self._device = parts, compiled, recorder, device
        self._moving = [i for i, stable in enumerate(parts.stable) if not stable]
        self._recordings: dict[tuple[Any, ...], Recording | None] = {}
        self._buffers: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}

    def __call__(self, *args: Any) -> Any:
        parts = self._parts
        given = [args[i] for i in parts.takes]
        ahead = parts.front(*args)
        moving = len(self._moving)
        with self._recorder.alone():
            buffers = self._filled([given[i] for i in self._moving], ahead[len(ahead) - parts.made :])
            inputs = [*given, *buffers[moving:]]
            for i, buffer in zip(self._moving, buffers[:moving], strict=True):
                inputs[i] = buffer
            results = self._run(inputs, buffers)
        return tuple(results[i] if own else ahead[i] for own, i in parts.returns)

    def _filled(self, given: Sequence[Tensor], made: Sequence[Tensor]) -> list[Tensor]:
        """Buffers with what is in these tensors. Strides are kept, as compilers rely on them."""
        sources = [_dense(tensor) for tensor in (*given, *made)]
        kind = tuple((t.shape, t.stride(), t.dtype, t.device) for t in (*given, *made))
        if kind not in self._buffers:
            self._check(sources)
            with torch.inference_mode(False):
                memory = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in sources]
            shown = [buffer.expand(t.shape) for buffer, t in zip(memory, (*given, *made), strict=True)]
            self._buffers[kind] = memory, shown
        memory, buffers = self._buffers[kind]
        if memory:
            torch._foreach_copy_(memory, sources)
        return buffers

    def _check(self, sources: Sequence[Tensor]) -> None:
        for tensor in sources:
            if tensor.device != self._device:
                raise HeadforceError(
                    "HF-CUDAGRAPHS",
                    site="cudagraphs",
                    found=f"an input of shape {tuple(tensor.shape)} on {tensor.device}, which a capture would freeze",
                    needed=f"every input that changes on {self._device}",
                )

    def _run(self, inputs: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Any]:
        if watcher() is not None:  # who looks on sees every operator run
            return _own(self._compiled(*inputs), buffers)
        key = tuple((t.data_ptr(), t.shape) for t in inputs)
        if key not in self._recordings:
            if len(self._recordings) == MOST:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = None
            return _own(self._compiled(*inputs), buffers)
        recording = self._recordings[key]
        if recording is None:
            recording = self._recordings[key] = self._recorder.record(lambda: self._compiled(*inputs))
            self.captures += 1
        recording.replay()
        self.replays += 1
        return [r.clone() if isinstance(r, Tensor) else r for r in recording.outputs]


def _dense(tensor: Tensor) -> Tensor:
    """The tensor without the repetitions of an expanded one."""
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if step == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _own(results: Sequence[Any], buffers: Sequence[Tensor]) -> list[Any]:
    """Results as the caller may keep them: the next call fills the buffers again."""
    places = {buffer.untyped_storage().data_ptr() for buffer in buffers}
    shared = [isinstance(r, Tensor) and r.untyped_storage().data_ptr() in places for r in results]
    return [r.clone() if is_shared else r for r, is_shared in zip(results, shared, strict=True)]
