"""The variants of `rollout.py`, and the sides that run them.

A side is one model with its caches. All sides share their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grouped
import plans
import published
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from wan import CHUNK, WINDOW, example, twin

import headforce
from headforce.demo.runner import compile_model
from headforce.policy import BoundPolicy, Policy
from headforce.presets import Labels, make_preset

DENSE = "dense"
"""What a side means that reads the newest 21 frames in every head; others mean a preset."""

ONLINE = "dummy_forcing online"
"""What a side means whose heads are classified in every video, as Dummy Forcing's own code does it."""

COUNTS = {
    "forcing_kv": {"static": 134, "dynamic": 226},
    "dummy_forcing": {"sink": 60, "neighbor": 120, "dummy": 180},
    "pyramid_forcing": {"wave": 156, "anchor": 172, "veil": 32},
}
"""Heads of each class among the 360 of the model, as published; of Dummy Forcing only the dummies are."""


def labels_of(preset: str, layers: int, heads: int) -> Labels:
    """Classes in the published proportion, mixed up over all heads of the model, always in the same way."""
    members = plans.classes(plans.Plan("", "", COUNTS[preset], {}), layers * heads)
    of = {head: kind for kind, its_heads in members.items() for head in its_heads}
    return Labels(tuple(tuple(of[layer * heads + head] for head in range(heads)) for layer in range(layers)))


def policy_of(meaning: str, config: Any) -> Policy:
    """The policy that a side means, for a model of this size."""
    if meaning == DENSE:
        return Policy({})
    if meaning == "self_forcing":
        return make_preset(meaning, window=WINDOW)
    if meaning == ONLINE:
        return make_preset("dummy_forcing")
    return make_preset(meaning, labels=labels_of(meaning, config.num_layers, config.num_heads))


def bound_policy(meaning: str, config: Any) -> BoundPolicy:
    """The same for its heads."""
    return bound(policy_of(meaning, config), config)


def bound(policy: Policy, config: Any) -> BoundPolicy:
    """A policy for the heads of a model of this size; `native()` is the window of the model."""
    native = make_preset("self_forcing", window=WINDOW).classes["all"]
    shape = {"layers": config.num_layers, "heads": config.num_heads, "tokens": config.tokens_per_frame}
    return policy.bind(**shape, native=native)


@dataclass(frozen=True)
class Settings:
    """What all sides of a run share.

    Args:
        inner: the compiler inside headforce, and the plain one. best: the backend of SDPA but for a0's. flash: that.
        whole: whether models are compiled as one graph, or block by block, which compiles sooner. Passes are captured
            in the same way: whole, or block by block.
    """

    device: torch.device
    inner: str
    best: SDPBackend
    flash: SDPBackend
    whole: bool = True

    @cached_property
    def rotate(self) -> grouped.Rotate:
        """RoPE as one kernel, or as it is where times do not matter."""
        return torch.compile(example.rotate, dynamic=True) if self.inner == "inductor" else example.rotate


def backends(device: torch.device, dtype: torch.dtype, dim: int) -> tuple[SDPBackend, SDPBackend]:
    """The best backend of SDPA for these heads that runs here, and the published one. Which is best is known: cuDNN's,
    by `attention.py`."""
    if device.type != "cuda":
        return SDPBackend.FLASH_ATTENTION, SDPBackend.FLASH_ATTENTION
    probe = torch.zeros((1, 1, 256, dim), dtype=dtype, device=device)
    try:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(probe, probe, probe)
    except RuntimeError:
        return SDPBackend.FLASH_ATTENTION, SDPBackend.FLASH_ATTENTION
    return SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION


@dataclass
class Side:
    """One variant, ready to run.

    Attributes:
        held: bytes of K and V that it holds. restart: makes its caches ready for another video.
        policy: what its heads read, as far as that is settled; None where they read what the model reads.
        records: what its heads decide, for the oracle to replay. close: takes back what was done to the model.
        replays: how often a captured graph was replayed, if any is.
    """

    name: str
    model: nn.Module
    config: Any
    caches: list[dict[str, Any]]
    backend: SDPBackend | None
    held: Callable[[], int]
    restart: Callable[[], None]
    text: list[dict[str, Any]]
    policy: Callable[[], BoundPolicy | None] = lambda: None
    records: Callable[[int, int], Any] = lambda layer, head: None
    close: Callable[[], None] = lambda: None
    replays: Callable[[], int | None] = lambda: None

    @torch.no_grad()
    def chunk(self, index: int, passes: Sequence[tuple[Tensor, Tensor]], context: Tensor) -> list[Tensor]:
        """The flow of every pass of a chunk. Chunk 0 begins another video."""
        if index == 0:
            self.restart()
            for cache in self.text:
                cache["is_init"] = False
        start = index * CHUNK * self.config.tokens_per_frame
        arguments = {"kv_cache": self.caches, "crossattn_cache": self.text, "current_start": start}
        with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            return [self.model(x, t, context, **arguments) for x, t in passes]


@dataclass(frozen=True)
class Variant:
    """`meaning` is what its heads read: `DENSE` or a preset. `build` makes a side of a model."""

    name: str
    meaning: str
    build: Callable[[nn.Module, Settings], Side]
    ours: bool = False

    def cache_bytes(self, config: Any, itemsize: int) -> int:
        """About how many bytes of K and V the side holds."""
        frames = WINDOW if self.meaning in (DENSE, "self_forcing", "pyramid_forcing") else 9
        return 2 * config.num_layers * frames * config.tokens_per_frame * config.dim * itemsize


def _like(model: Any) -> dict[str, Any]:
    weight = model.head.head.weight
    return {"dtype": weight.dtype, "device": weight.device}


def _texts(model: Any) -> list[dict[str, Any]]:
    return example.allocate_crossattn_cache(model.config, **_like(model))


def _hollow_caches(model: Any) -> list[dict[str, Any]]:
    """Empty caches of the right shape without memory behind them: headforce puts its own in their place."""
    with torch.device("meta"):
        caches = example.allocate_kv_cache(model.config)
    like = _like(model)
    return [
        {
            name: torch.zeros((), **like).expand(value.shape) if isinstance(value, Tensor) else value
            for name, value in cache.items()
        }
        for cache in caches
    ]


def dense_side(name: str, model: Any, backend: SDPBackend, compiled: nn.Module | None = None) -> Side:
    """A side whose model has caches of its own, those of the example or the published ones."""
    caches = example.allocate_kv_cache(model.config, **_like(model))
    on_device = isinstance(model.blocks[0].self_attn, published.PublishedAttention)
    if on_device:
        published.index_on_device(caches)

    def restart() -> None:
        if on_device:
            published.restart(caches)
        else:
            example.reset_caches(caches, [])

    held = sum(cache[name].nbytes for cache in caches for name in ("k", "v"))
    run = model if compiled is None else compiled
    return Side(name, run, model.config, caches, backend, lambda: held, restart, _texts(model))


def dense_eager(name: str, best: bool) -> Variant:
    """Self-Forcing as published."""

    def build(model: nn.Module, settings: Settings) -> Side:
        backend = settings.best if best else settings.flash
        return dense_side(name, published.as_published(model), backend)

    return Variant(name, DENSE, build)


def plain_compiled(name: str) -> Variant:
    """The example model, which traces into one graph, under the plain compiler."""

    def build(model: nn.Module, settings: Settings) -> Side:
        own = twin(model)
        return dense_side(name, own, settings.best, compile_model(own, settings.inner, settings.whole, None))

    return Variant(name, DENSE, build)


def grouped_eager(preset: str) -> Variant:
    """The calls of a published fork."""
    name = f"grouped {preset}"

    def build(model: Any, settings: Settings) -> Side:
        policy = bound_policy(preset, model.config)
        own, decisions = grouped.as_grouped(model, policy, settings.rotate)
        layers = [block.self_attn for block in own.blocks]
        return Side(
            name,
            own,
            model.config,
            [{} for _ in layers],
            settings.best,
            lambda: sum(layer.held_bytes for layer in layers),
            lambda: None,
            _texts(model),
            lambda: policy,
            decisions.record,
        )

    return Variant(name, preset, build)


def ours(meaning: str, target: str, cudagraphs: bool = False) -> Variant:
    """headforce under a preset, or under `native()`."""
    name = f"headforce {meaning} {target}" + (" graphs" if cudagraphs else "")

    def build(model: Any, settings: Settings) -> Side:
        own, policy = twin(model), policy_of(meaning, model.config)
        session = headforce.prepare(own, policy)
        try:
            blocks = None if settings.whole else "blocks"
            session.compile(blocks=blocks, inner=settings.inner, target=target, cudagraphs=cudagraphs)
            caches = _hollow_caches(own)
        except Exception:
            session.restore()
            raise

        def settled() -> BoundPolicy:
            labels = session.labels
            return bound(policy if labels is None else policy.classified(labels.layers), model.config)

        def record(layer: int, head: int) -> Any:
            memory = session.cache_sets[-1].stream.lane(layer, head).memory
            return memory.explained() if memory else None

        def close() -> None:
            for cache in caches:  # or the session would put whole caches back
                cache["k"] = cache["v"] = own.head.head.weight.new_empty(0)
            session.restore()

        return Side(
            name,
            own,
            model.config,
            caches,
            settings.best,
            lambda: session.pool_bytes,
            lambda: example.reset_caches(caches, []),
            _texts(own),
            settled,
            record,
            close,
            (lambda: session.replays) if cudagraphs else (lambda: None),
        )

    return Variant(name, meaning, build, ours=True)
