"""The published forks: how each is made, small, with random weights, and the policy that is to compute what it does.

A fork is a copy of Self-Forcing with other caches and attention edited into it. All of that runs as it is, but for
flash-attn, in whose place is torch's attention, and on a CPU the fork's Triton kernels: plain functions that lie beside
them or do the same stand in for these.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headforce import presets
from headforce.policy import Policy, parse_rule
from headforce.presets import Labels, deep_forcing, dummy_forcing, forcing_kv, pyramid_forcing

from .families import longlive, reward_forcing, self_forcing
from .pyramid import pyramid
from .run import HEADS, SMALL, Run, Scale, TextEncoder, Vae, arguments_of, run_of, small, wan, with_tokens, written

WINDOW = 21
PARITY = replace(SMALL, layers=3, dtype=torch.float32)
"""Large enough for heads of every class, and exact."""


def _labels(scale: Scale, *classes: str) -> Labels:
    """Heads of these classes, as many in every layer, in another order."""
    names = (
        tuple(classes[(5 * head + layer) % len(classes)] for head in range(HEADS)) for layer in range(scale.layers)
    )
    return Labels(tuple(names))


def static_dynamic(scale: Scale) -> Labels:
    """In the proportion that was published for Forcing-KV, about."""
    return _labels(scale, *["static"] * 4, *["dynamic"] * 8)


def anchor_wave_veil(scale: Scale) -> Labels:
    """In the proportion that was published for Pyramid Forcing, about."""
    return _labels(scale, *["wave"] * 5, *["anchor"] * 6, "veil")


@dataclass(frozen=True)
class Fork:
    """A fork in one setting.

    Attributes:
        make: from its checkout and Self-Forcing's; gives the same weights every time.
        policy: what is to compute the same with so many layers. Where the fork classifies heads, so does the policy.
        chunks: of a video, so many that everything has been evicted that ever is.
        instead: what was replaced in the fork besides kernels, because the preset does not follow it there.
        refused: the code with which `prepare` refuses the fork itself.
    """

    name: str
    checkout: str
    make: Callable[[Path, Path, Scale], Run]
    policy: Callable[[Scale], Policy]
    chunks: int = 6
    instead: str = ""
    refused: str = "HF-CACHE-FORM"


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention of tensors [batch, rows, heads, channels], in their dtype; a group may have no head."""
    if not q.shape[2]:
        return q
    return scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2).contiguous()


def placed(run: Run, scale: Scale, *modules: ModuleType) -> Run:
    """The run in the dtype and on the device of the scale, with attention that leaves it so in `modules`."""
    for module in modules:
        for name in ("attention", "flash_attention"):
            if hasattr(module, name):
                setattr(module, name, plain_attention)
    run.pipeline.to(scale.device, scale.dtype)
    return run


def unmodified(path: Path, scale: Scale = PARITY) -> Run:
    """Self-Forcing itself, whose attention headforce rewrites."""
    return _as_it_is(self_forcing(path, window=WINDOW, sink=0, scale=scale), scale)


def _as_it_is(run: Run, scale: Scale) -> Run:
    """A pipeline of `families.py`."""
    import wan.modules.causal_model as causal  # type: ignore[import-not-found]
    import wan.modules.model as model

    return placed(run, scale, causal, model)


def forcing_kv_fork(path: Path, _: Path, scale: Scale, **own: Any) -> Run:
    """`CausalInferencePipeline_ForcingKV` with the settings of its own configuration for Self-Forcing."""
    labels = written("labels.json", json.dumps(static_dynamic(scale).to_forcing_kv()))
    sizes = {f"{name}_context_length": 1 for name in ("spatial", "temporal", "dynamic")}
    selects = {"dynamic_temporal_enabled": True, "num_frame_patch": 6, "sim_retention_ratio": 0.33}
    settings = {"ar_start": 1, **sizes, **selects, "offline_head_file": labels, **own}
    kind = "CausalInferencePipeline_ForcingKV"
    code = _Code("causal_model_forcingkv", "causal_inference_forcingkv", kind, "forcingkv")
    return _grouped(path, code, settings, scale, method="forcingkv")


def dummy_forcing_fork(path: Path, _: Path, scale: Scale, ar_start: int = 1, context: int = 1) -> Run:
    """`CausalInferencePipeline`, whose classification measures every row of queries, once."""
    settings = {"denoise_start": 0, "ar_start": ar_start, "local_context_length": context}
    code = _Code("causal_model", "causal_inference", "CausalInferencePipeline", "dummy_forcing")
    run = _grouped(path, code, {**settings, "num_dummy": dummies(scale)}, scale)
    import wan.modules.dummyforcing as classification  # type: ignore[import-not-found]

    classification.torch = ModuleType("torch")
    vars(classification.torch).update(vars(torch), randint=lambda low, high, size: torch.arange(low, high))
    return run


class _Code(NamedTuple):
    """Where the code of a fork is: its model, its pipeline and the class in that, and the name of its settings."""

    model: str
    pipeline: str
    kind: str
    key: str


def _grouped(path: Path, code: _Code, settings: dict[str, Any], scale: Scale, **wrapped: Any) -> Run:
    """A fork that splits heads into groups: Forcing-KV's and Dummy Forcing's have that and their kernels in common."""
    on_cpu = scale.device == "cpu"
    kernels = ("rope_triton", "extract_head_triton") if on_cpu else ()
    stand_ins: dict[str, dict[str, Any]] = {f"wan.modules.{name}": {} for name in kernels}
    stand_ins["utils.debug_option"] = {"DEBUG": False}
    checkout = wan(path, "utils.memory", device=scale.device, **stand_ins)
    causal = checkout.load(f"wan.modules.{code.model}")
    if on_cpu:
        rope = causal.causal_rope_apply
        causal.rope_apply_triton = lambda x, *where: torch.cat([rope(part, *where) for part in x.chunk(2)])
        causal.extract_heads_triton = lambda q, k, v, second, first: (
            *(t[:, :, first] for t in (q, k, v)),
            *(t[:, :, second] for t in (q, k, v)),
        )
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel, scale)
    sizes = {"local_attn_size": -1, "sink_size": 1, "timestep_shift": 5.0}
    given = SimpleNamespace(**settings, teacache_enabled=False, teacache_threshold=0.2)
    arguments = arguments_of(scale, model_kwargs=SimpleNamespace(**sizes), **{code.key: given})
    generator = checkout.load("utils.wan_wrapper").WanDiffusionWrapper(**sizes, **wrapped, is_causal=True)
    made = getattr(checkout.load(f"pipeline.{code.pipeline}"), code.kind)(
        arguments, torch.device(scale.device), generator, TextEncoder(), Vae()
    )
    return placed(run_of(made, arguments, scale), scale, causal, checkout.load("wan.modules.model"))


def deep_forcing_fork(path: Path, _: Path, scale: Scale, sink: int = 10, *, compresses: bool = True) -> Run:
    """`CausalInferencePipeline` with the deep sink alone, or with participative compression, whose tokens are scored by
    the clean pass before."""
    checkout = wan(path, "demo_utils.memory", "demo_utils", device=scale.device)
    causal = checkout.load("wan.modules.causal_model")
    with_tokens(causal.CausalWanSelfAttention.forward, scale)
    causal._mkv_update_win_q = _queries_of_the_pass_before
    sizes = {"PC_capacity": 16 * scale.tokens, "PC_window": 4 * scale.tokens}
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel, scale, **sizes)
    alone = checkout.load("wan.modules.causal_model_DS")
    alone.CausalWanModelDS.from_pretrained = small(alone.CausalWanModelDS, scale)
    settings = {"local_attn_size": WINDOW, "sink_size": sink, "timestep_shift": 5.0, "is_ds_only": not compresses}
    arguments = arguments_of(scale, model_kwargs=settings)
    generator = checkout.load("utils.wan_wrapper").WanDiffusionWrapper(**settings, is_causal=True)
    pipeline = checkout.load("pipeline.causal_inference").CausalInferencePipeline(
        arguments, torch.device(scale.device), generator, TextEncoder(), Vae()
    )
    for block in pipeline.generator.model.blocks:
        block.self_attn.max_attention_size = WINDOW * scale.tokens
    return placed(run_of(pipeline, arguments, scale), scale, causal, alone, checkout.load("wan.modules.model"))


def _queries_of_the_pass_before(cache: dict[str, Any], queries: Tensor, R: int) -> None:
    """In place of the queries of four frames, those of the pass before, and zeros for the frames that are missing."""
    before = cache.get("of this pass", queries)
    missing = before.new_zeros(before.shape[0], R - before.shape[1], *before.shape[2:])
    cache["win_q"], cache["of this pass"] = torch.cat([missing, before], dim=1), queries.detach()


def pyramid_fork(path: Path, base: Path, scale: Scale) -> Run:
    """Self-Forcing's pipeline with the authors' cache of heads."""
    run = pyramid(path, base, anchor_wave_veil(scale), scale)
    import wan.modules.model as model

    return placed(run, scale, model)


def dummies(scale: Scale) -> int:
    """Heads without a past: half of them, as published."""
    return scale.layers * HEADS // 2


def _dummy_forcing(scale: Scale, **given: Any) -> Policy:
    return dummy_forcing(num_dummy=dummies(scale), queries=1.0, **given)


def _forcing_kv(scale: Scale, **given: Any) -> Policy:
    return forcing_kv(static_dynamic(scale), **given)


def _deep_sink() -> Policy:
    return Policy({"all": parse_rule("sink(14)@carry(21, 21, 3) | span(7)")}, default="all")


def _ema_sink() -> Policy:
    """With the operator of an example package, which is not installed."""
    sys.path.append(str(Path(__file__).parents[2] / "examples" / "plugin_ema_sink"))
    import headforce_ema_sink.maker
    import headforce_ema_sink.op  # noqa: F401

    rule = "(ema_sink(3, source=evicted(recent)) | span(6) as recent)@contiguous"
    return Policy({"all": parse_rule(rule)}, default="all")


ALL_ROWS = "rows of queries that classify heads: all of them, where it draws some at random"
FORKS = {
    fork.name: fork
    for fork in (
        Fork(
            "longlive",
            "longlive-1",
            lambda path, _, scale: _as_it_is(longlive(path, 12, 3, scale), scale),
            lambda _: presets.longlive(),
            7,
            refused="",
        ),
        Fork("forcing-kv", "Forcing-KV", forcing_kv_fork, _forcing_kv),
        Fork(
            "forcing-kv-two-frames",
            "Forcing-KV",
            partial(forcing_kv_fork, ar_start=2, spatial_context_length=2, temporal_context_length=3),
            partial(_forcing_kv, static_window=2, dynamic_window=3, warmup_chunks=3),
            7,
        ),
        Fork(
            "forcing-kv-windows",
            "Forcing-KV",
            partial(forcing_kv_fork, temporal_context_length=3, dynamic_temporal_enabled=False),
            partial(_forcing_kv, dynamic_window=3, selected=0),
        ),
        Fork(
            "dummy-forcing",
            "DummyForcing",
            dummy_forcing_fork,
            _dummy_forcing,
            instead=ALL_ROWS,
        ),
        Fork(
            "dummy-forcing-late",
            "DummyForcing",
            partial(dummy_forcing_fork, ar_start=2),
            partial(_dummy_forcing, classify_at=2, first_frames=3),
            7,
            ALL_ROWS,
        ),
        Fork(
            "dummy-forcing-wide",
            "DummyForcing",
            partial(dummy_forcing_fork, context=2),
            partial(_dummy_forcing, context=6, quirks=["no_first_frame"]),
            instead=ALL_ROWS,
        ),
        Fork(
            "deep-forcing",
            "Spectral_C",
            deep_forcing_fork,
            lambda _: deep_forcing(),
            12,
            "queries that score tokens: those of the clean pass before, where it takes the first noisy pass",
        ),
        Fork(
            "deep-forcing-sink",
            "Spectral_C",
            partial(deep_forcing_fork, sink=14, compresses=False),
            lambda _: _deep_sink(),
            10,
        ),
        Fork(
            "reward-forcing",
            "reward-forcing",
            lambda path, _, scale: _as_it_is(reward_forcing(path, scale), scale),
            lambda _: _ema_sink(),
            8,
            refused="HF-CLOCK",
        ),
        Fork(
            "pyramid-forcing",
            "RollingForcing-fork",
            pyramid_fork,
            lambda scale: pyramid_forcing(anchor_wave_veil(scale), quirks=["pinned_frame"]),
            12,
            "frames of the first chunk and of clean passes: at their own positions, and stored behind the reading",
            refused="HF-ADAPTER",  # the model is Self-Forcing's, with another method in it
        ),
    )
}
"""By name. `checkout` is the name of a folder with a checkout: of github.com/zju-jiyicheng/Forcing-KV,
csguoh/DummyForcing, Nizben/Spectral_C at ea9961a (the code of Deep Forcing), winbeau/RollingForcing-fork (see
`pyramid.py`), JaydenLyh/Reward-Forcing as `reward-forcing`, and the branch v1.0 of NVlabs/LongLive as `longlive-1`."""
