"""The published forks: how each is made, small, with random weights, and the policy that is to compute what it does.

A fork is a copy of Self-Forcing with other caches and attention edited into it. All of that runs as it is, on a CPU and
in float32: its Triton kernels are replaced by plain functions that lie beside them or do the same, and flash-attn by
torch's attention.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headforce import presets
from headforce.policy import Policy, parse_rule
from headforce.presets import Labels, deep_forcing, dummy_forcing, forcing_kv, pyramid_forcing

from .families import longlive, reward_forcing, self_forcing
from .pyramid import pyramid
from .run import TOKENS, Run, TextEncoder, Vae, arguments_of, run_of, small, wan, with_tokens, written

LAYERS, HEADS, WINDOW = 3, 12, 21
DUMMIES = LAYERS * HEADS // 2


def _labels(name: Callable[[int, int], str]) -> Labels:
    return Labels(tuple(tuple(name(layer, head) for head in range(HEADS)) for layer in range(LAYERS)))


STATIC_DYNAMIC = _labels(lambda layer, head: "static" if head % (layer + 2) == 0 else "dynamic")
PYRAMID = _labels(lambda layer, head: ("wave", "anchor", "veil")[(head * (layer + 2) + layer) % 3])


@dataclass(frozen=True)
class Fork:
    """A fork in one setting.

    Attributes:
        make: from its checkout and Self-Forcing's; gives the same weights every time.
        policy: what is to compute the same. Where the fork classifies heads, so does the policy.
        chunks: of a video, so many that everything has been evicted that ever is.
        instead: what was replaced in the fork besides kernels, because the preset does not follow it there.
        refused: the code with which `prepare` refuses the fork itself.
    """

    name: str
    checkout: str
    make: Callable[[Path, Path], Run]
    policy: Callable[[], Policy]
    chunks: int = 6
    instead: str = ""
    refused: str = "HF-CACHE-FORM"


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention of tensors [batch, rows, heads, channels], in their dtype; a group may have no head."""
    if not q.shape[2]:
        return q
    return scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2).contiguous()


def in_float32(run: Run, *modules: ModuleType) -> Run:
    """The run in float32, with attention that leaves it so in `modules`."""
    for module in modules:
        for name in ("attention", "flash_attention"):
            if hasattr(module, name):
                setattr(module, name, plain_attention)
    run.pipeline.float()
    return run


def unmodified(path: Path) -> Run:
    """Self-Forcing itself, whose attention headforce rewrites."""
    return _as_it_is(self_forcing(path, window=WINDOW, sink=0, layers=LAYERS))


def _as_it_is(run: Run) -> Run:
    """A pipeline of `families.py`."""
    import wan.modules.causal_model as causal  # type: ignore[import-not-found]
    import wan.modules.model as model

    return in_float32(run, causal, model)


def forcing_kv_fork(path: Path, _: Path, **own: Any) -> Run:
    """`CausalInferencePipeline_ForcingKV` with the settings of its own configuration for Self-Forcing."""
    labels = written("labels.json", json.dumps(STATIC_DYNAMIC.to_forcing_kv()))
    sizes = {f"{name}_context_length": 1 for name in ("spatial", "temporal", "dynamic")}
    selects = {"dynamic_temporal_enabled": True, "num_frame_patch": 6, "sim_retention_ratio": 0.33}
    settings = {"ar_start": 1, **sizes, **selects, "offline_head_file": labels, **own}
    kind = "CausalInferencePipeline_ForcingKV"
    wrapped = {"method": "forcingkv"}
    return _grouped(
        path, "causal_model_forcingkv", ("causal_inference_forcingkv", kind), "forcingkv", settings, wrapped
    )


def dummy_forcing_fork(path: Path, _: Path, ar_start: int = 1, context: int = 1) -> Run:
    """`CausalInferencePipeline`, whose classification measures every row of queries, once."""
    settings = {"denoise_start": 0, "ar_start": ar_start, "local_context_length": context, "num_dummy": DUMMIES}
    pipeline = ("causal_inference", "CausalInferencePipeline")
    run = _grouped(path, "causal_model", pipeline, "dummy_forcing", settings, {})
    import wan.modules.dummyforcing as classification  # type: ignore[import-not-found]

    classification.torch = ModuleType("torch")
    vars(classification.torch).update(vars(torch), randint=lambda low, high, size: torch.arange(low, high))
    return run


def _grouped(
    path: Path, module: str, pipeline: tuple[str, str], key: str, settings: dict[str, Any], wrapped: dict[str, Any]
) -> Run:
    """A fork that splits heads into groups: Forcing-KV's and Dummy Forcing's have that and their kernels in common."""
    kernels: dict[str, dict[str, Any]] = {f"wan.modules.{name}": {} for name in ("rope_triton", "extract_head_triton")}
    checkout = wan(path, "utils.memory", **kernels, **{"utils.debug_option": {"DEBUG": False}})
    causal = checkout.load(f"wan.modules.{module}")
    causal.rope_apply_triton = lambda x, *where: torch.cat([causal.causal_rope_apply(p, *where) for p in x.chunk(2)])
    causal.extract_heads_triton = lambda q, k, v, second, first: (
        *(t[:, :, first] for t in (q, k, v)),
        *(t[:, :, second] for t in (q, k, v)),
    )
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel, num_layers=LAYERS)
    sizes = {"local_attn_size": -1, "sink_size": 1, "timestep_shift": 5.0}
    given = SimpleNamespace(**settings, teacache_enabled=False, teacache_threshold=0.2)
    arguments = arguments_of(model_kwargs=SimpleNamespace(**sizes), **{key: given})
    generator = checkout.load("utils.wan_wrapper").WanDiffusionWrapper(**sizes, **wrapped, is_causal=True)
    made = getattr(checkout.load(f"pipeline.{pipeline[0]}"), pipeline[1])(
        arguments, torch.device("cpu"), generator, TextEncoder(), Vae()
    )
    return in_float32(run_of(made, arguments), causal, checkout.load("wan.modules.model"))


def deep_forcing_fork(path: Path, _: Path, sink: int = 10, *, compresses: bool = True) -> Run:
    """`CausalInferencePipeline` with the deep sink alone, or with participative compression, whose tokens are scored by
    the clean pass before."""
    checkout = wan(path, "demo_utils.memory", "demo_utils")
    causal = checkout.load("wan.modules.causal_model")
    with_tokens(causal.CausalWanSelfAttention.forward)
    causal._mkv_update_win_q = _queries_of_the_pass_before
    sizes = {"PC_capacity": 16 * TOKENS, "PC_window": 4 * TOKENS}
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel, num_layers=LAYERS, **sizes)
    alone = checkout.load("wan.modules.causal_model_DS")
    alone.CausalWanModelDS.from_pretrained = small(alone.CausalWanModelDS, num_layers=LAYERS)
    settings = {"local_attn_size": WINDOW, "sink_size": sink, "timestep_shift": 5.0, "is_ds_only": not compresses}
    arguments = arguments_of(model_kwargs=settings)
    generator = checkout.load("utils.wan_wrapper").WanDiffusionWrapper(**settings, is_causal=True)
    pipeline = checkout.load("pipeline.causal_inference").CausalInferencePipeline(
        arguments, torch.device("cpu"), generator, TextEncoder(), Vae()
    )
    for block in pipeline.generator.model.blocks:
        block.self_attn.max_attention_size = WINDOW * TOKENS
    return in_float32(run_of(pipeline, arguments), causal, alone, checkout.load("wan.modules.model"))


def _queries_of_the_pass_before(cache: dict[str, Any], queries: Tensor, R: int) -> None:
    """In place of the queries of four frames, those of the pass before, and zeros for the frames that are missing."""
    before = cache.get("of this pass", queries)
    missing = before.new_zeros(before.shape[0], R - before.shape[1], *before.shape[2:])
    cache["win_q"], cache["of this pass"] = torch.cat([missing, before], dim=1), queries.detach()


def pyramid_fork(path: Path, base: Path) -> Run:
    """Self-Forcing's pipeline with the authors' cache of heads."""
    run = pyramid(path, base, PYRAMID)
    import wan.modules.model as model

    return in_float32(run, model)


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
            lambda path, _: _as_it_is(longlive(path, 12, 3, LAYERS)),
            presets.longlive,
            7,
            refused="",
        ),
        Fork("forcing-kv", "Forcing-KV", forcing_kv_fork, partial(forcing_kv, STATIC_DYNAMIC)),
        Fork(
            "forcing-kv-two-frames",
            "Forcing-KV",
            partial(forcing_kv_fork, ar_start=2, spatial_context_length=2, temporal_context_length=3),
            partial(forcing_kv, STATIC_DYNAMIC, static_window=2, dynamic_window=3, warmup_chunks=3),
            7,
        ),
        Fork(
            "forcing-kv-windows",
            "Forcing-KV",
            partial(forcing_kv_fork, temporal_context_length=3, dynamic_temporal_enabled=False),
            partial(forcing_kv, STATIC_DYNAMIC, dynamic_window=3, selected=0),
        ),
        Fork(
            "dummy-forcing",
            "DummyForcing",
            dummy_forcing_fork,
            partial(dummy_forcing, num_dummy=DUMMIES, queries=1.0),
            instead=ALL_ROWS,
        ),
        Fork(
            "dummy-forcing-late",
            "DummyForcing",
            partial(dummy_forcing_fork, ar_start=2),
            partial(dummy_forcing, num_dummy=DUMMIES, queries=1.0, classify_at=2, first_frames=3),
            7,
            ALL_ROWS,
        ),
        Fork(
            "dummy-forcing-wide",
            "DummyForcing",
            partial(dummy_forcing_fork, context=2),
            partial(dummy_forcing, num_dummy=DUMMIES, queries=1.0, context=6, quirks=["no_first_frame"]),
            instead=ALL_ROWS,
        ),
        Fork(
            "deep-forcing",
            "Spectral_C",
            deep_forcing_fork,
            deep_forcing,
            12,
            "queries that score tokens: those of the clean pass before, where it takes the first noisy pass",
        ),
        Fork(
            "deep-forcing-sink",
            "Spectral_C",
            partial(deep_forcing_fork, sink=14, compresses=False),
            _deep_sink,
            10,
        ),
        Fork(
            "reward-forcing",
            "reward-forcing",
            lambda path, _: _as_it_is(reward_forcing(path, LAYERS)),
            _ema_sink,
            8,
            refused="HF-CLOCK",
        ),
        Fork(
            "pyramid-forcing",
            "RollingForcing-fork",
            pyramid_fork,
            partial(pyramid_forcing, PYRAMID, quirks=["pinned_frame"]),
            12,
            "frames of the first chunk and of clean passes: at their own positions, and stored behind the reading",
            refused="HF-ADAPTER",  # the model is Self-Forcing's, with another method in it
        ),
    )
}
"""By name. `checkout` is the name of a folder with a checkout: of github.com/zju-jiyicheng/Forcing-KV,
csguoh/DummyForcing, Nizben/Spectral_C at ea9961a (the code of Deep Forcing), winbeau/RollingForcing-fork (see
`pyramid.py`), JaydenLyh/Reward-Forcing as `reward-forcing`, and the branch v1.0 of NVlabs/LongLive as `longlive-1`."""
