"""Looking on while the operators of a lowered graph run. No graph knows of it, and results stay what they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from torch import Tensor


class Launch(NamedTuple):
    """The operands of one ragged attention, as `kernels.reference.ragged_attention` explains them."""

    query: Tensor
    key: Tensor
    value: Tensor
    reads: Tensor
    runs: Tensor
    theta: Tensor
    first_pair: int
    style: str
    scale: float


class Watcher(Protocol):
    """What is told of every operator that ran in this thread. What it raises, the model's call raises."""

    def wrote(self, key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
        """Keys and values [B, S, H, D] were written, as they are, into the pages [B * H, n] of their frames."""

    def attended(self, launch: Launch, result: Tensor) -> None:
        """A target has computed the attention of a layer."""


_RUNNING = threading.local()


def watcher() -> Watcher | None:
    """Who looks on in this thread."""
    return getattr(_RUNNING, "watcher", None)


@contextmanager
def watching(by: Watcher) -> Iterator[None]:
    """Operators that run inside are reported to `by`."""
    before, _RUNNING.watcher = watcher(), by
    try:
        yield
    finally:
        _RUNNING.watcher = before
