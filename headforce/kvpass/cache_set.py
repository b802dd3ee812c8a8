"""One set of caches - one stream: the shells the model holds, and the pools that K and V really live in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.novelty import novelty
from ..lowering.plan import ChunkPlan
from ..lowering.pool import PagePool, PageShape
from ..lowering.stream import Stream
from ..lowering.verify import check_plan, check_tables
from ..policy import Rule
from .capture import LayerCache
from .shell import make_shell

if TYPE_CHECKING:
    from .session import Session


@dataclass(frozen=True)
class PassFacts:
    """What one site shows of the running pass, all in numbers.

    Attributes:
        start, frames: the frames written, from RoPE. first_row: the first row written, counted as the model counts
            (rows of its cache). evicted: rows that this pass rolled out of the cache. sink: rows that the roll left in
            front, or None without a roll. read_rows: rows the model itself would read, the chunk included.
        cache_rows: rows of the model's cache. rows: tokens of a frame.
    """

    start: int
    frames: int
    rows: int
    first_row: int
    evicted: int
    sink: int | None
    read_rows: int
    cache_rows: int


@dataclass(frozen=True)
class Rotation:
    """How keys turn with the frame; see `kernels.rotation.turn`. `theta` is empty where no RoPE was recognised."""

    theta: Tensor
    first_pair: int
    style: str


@dataclass
class LayerState:
    """One layer of a set: how often its site ran, and how far its model's cache has rolled."""

    caches: CacheSet
    layer: int
    launches: int = 0
    evicted: int = 0


REGISTRY: dict[tuple[torch.device, int], LayerState] = {}
"""Storage of a shell -> its layer. A shell's range is its own for as long as it lives, so the key is unique."""


def layer_of(tensor: Tensor) -> LayerState | None:
    """The layer whose shell `tensor` is, or a view of it; None for any other tensor."""
    return REGISTRY.get((tensor.device, tensor.untyped_storage().data_ptr()))


class CacheSet:
    """The caches of all layers of one stream, adopted.

    Args:
        session: the prepared model; its policy is bound when the first pass shows the model's shapes.
        caches: the model's caches, which must be empty; their tensors are replaced by shells.
    """

    def __init__(self, session: Session, caches: Sequence[LayerCache]) -> None:
        if not all(cache.is_empty() for cache in caches):
            raise HeadforceError(
                "HF-ADOPT", found="a cache that already holds a part of a video", needed="an empty cache"
            )
        self.session = session
        self.caches = list(caches)
        self.shells = [tuple(make_shell(t.shape, t.dtype, t.device) for t in cache.tensors()) for cache in self.caches]
        self.layers = [LayerState(self, i) for i in range(len(caches))]
        self.stream: Stream | None = None
        self.pool: PagePool | None = None
        self.rotation: Rotation | None = None
        self._checked: ChunkPlan | None = None
        for cache, (k, v), layer in zip(self.caches, self.shells, self.layers, strict=True):
            cache.replace(k, v)
            for shell in (k, v):
                REGISTRY[shell.device, shell.untyped_storage().data_ptr()] = layer

    @property
    def in_use(self) -> bool:
        """False when nobody but this set still refers to any of its caches."""
        return any(sys.getrefcount(cache.owner()) > _OWN_REFERENCES for cache in self.caches)

    def release(self) -> None:
        """Gives up pools and registration, and puts ordinary empty tensors back into the model's caches."""
        for cache, shells in zip(self.caches, self.shells, strict=True):
            for shell in shells:
                REGISTRY.pop((shell.device, shell.untyped_storage().data_ptr()), None)
            if cache.tensors()[0] is shells[0]:
                cache.give_back(*(torch.zeros_like(shell) for shell in shells))
        self.stream = self.pool = None

    def see_reset(self) -> None:
        """Resets the stream when the model's own indices say that a new video begins."""
        if self.stream is not None and self.stream.chunk is not None and self.caches[0].is_empty():
            self.stream.reset()
            for layer in self.layers:
                layer.evicted = 0

    def enter(self, layer: LayerState, facts: PassFacts, shape: PageShape, heads: int) -> None:
        """A layer's site runs: checks the clock, and lets the stream advance if this is the first layer to do so."""
        self._check_clock(layer, facts)
        native = self.session.native(facts.cache_rows, facts.rows)
        if self.stream is None:
            stream = Stream(self.session.policy.bind(layers=len(self.layers), heads=heads, native=native))
            self.pool = PagePool(stream, shape, canonical=self.session.canonical)
            self.stream = stream
        assert self.pool is not None
        assert self.rotation is not None
        if shape != self.pool.shape:
            raise HeadforceError(
                "HF-SHAPE", found=f"pages of {shape}", needed=f"the shape this stream began with, {self.pool.shape}"
            )
        decide = novelty(self.pool, self.rotation.theta, self.rotation.first_pair, self.rotation.style)
        self.stream.begin(facts.start, facts.frames, decide)
        if self.stream.plan is not self._checked:
            # Not "if the pass is new": a pass that was refused here comes as a repeat when it is tried again.
            self._check_native(facts, native)
            self._check_remap()
            self.pool.update()
            if self.session.verify:
                check_plan(self.stream)
                check_tables(self.pool)
            self._checked = self.stream.plan
        layer.launches += 1

    def _check_clock(self, layer: LayerState, facts: PassFacts) -> None:
        evicted = 0 if facts.start == 0 else layer.evicted + facts.evicted
        if facts.first_row + evicted != facts.start * facts.rows:
            raise HeadforceError(
                "HF-CLOCK",
                site=f"layer {layer.layer}",
                found=f"a query at frame {facts.start} while the cache is written at row {facts.first_row}"
                f" after {evicted} evicted rows, which is frame {(facts.first_row + evicted) / facts.rows:g}",
                needed="one and the same frame",
            )
        layer.evicted = evicted

    def _check_remap(self) -> None:
        assert self.stream is not None
        assert self.stream.plan is not None
        assert self.rotation is not None
        if not self.rotation.theta.numel() and any(head.remaps for head in self.stream.plan.heads):
            raise HeadforceError(
                "HF-ROPE",
                found="a policy that moves frames to other positions, and a RoPE table made inside the graph",
                needed="a table that is an input of the graph, or a policy that keeps positions",
            )

    def _check_native(self, facts: PassFacts, native: Rule) -> None:
        """The adapter's rule for the unmodified model against what the graph shows of it."""
        assert self.stream is not None
        chunk = self.stream.chunk
        assert chunk is not None
        expected = (len(native.frames(chunk, chunk.start)) + chunk.frames) * facts.rows
        sink = next((term.op.size for term in native.terms if term.op.name == "sink"), 0)  # type: ignore[attr-defined]
        if facts.read_rows != expected or (facts.sink is not None and facts.sink != sink * facts.rows):
            raise HeadforceError(
                "HF-NATIVE",
                found=f"a model that reads {facts.read_rows} rows at frame {chunk.start}"
                + (f" and keeps {facts.sink} rows in front" if facts.sink is not None else ""),
                needed=f"{expected} rows, which is what its adapter's rule {native} says",
            )


class _Probe(LayerCache):
    def __init__(self) -> None:
        self._owner: dict[str, int] = {}

    def owner(self) -> object:
        return self._owner

    def tensors(self) -> tuple[Tensor, Tensor]:
        raise AssertionError

    def replace(self, k: Tensor, v: Tensor) -> None:
        raise AssertionError

    def give_back(self, k: Tensor, v: Tensor) -> None:
        raise AssertionError

    def is_empty(self) -> bool:
        raise AssertionError


_PROBE = _Probe()
_OWN_REFERENCES = sys.getrefcount(_PROBE.owner())
"""References to a cache's dict when only its LayerCache is left: a pipeline that dropped its caches has no others."""
