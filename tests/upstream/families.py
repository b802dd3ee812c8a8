"""The repositories: how the pipeline of each is made, small, with random weights, from a checkout."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .checkout import Checkout
from .krea import krea
from .longlive_2 import longlive_2
from .run import (
    SMALL,
    WAN_STAND_INS,
    Family,
    Run,
    Scale,
    TextEncoder,
    Vae,
    arguments_of,
    noise,
    run_of,
    small,
    wan,
    with_tokens,
    without_flash_attention,
)


def self_forcing(path: Path, window: int = 6, sink: int = 1, scale: Scale = SMALL, **wrapped: Any) -> Run:
    """`CausalInferencePipeline`, whose caches stay and are reset for the next video."""
    checkout = wan(path, "demo_utils.memory", "demo_utils", device=scale.device)
    model_class = checkout.load("wan.modules.causal_model").CausalWanModel
    model_class.from_pretrained = small(model_class, scale)
    wrapper = checkout.load("utils.wan_wrapper").WanDiffusionWrapper
    settings = {"local_attn_size": window, "sink_size": sink, "timestep_shift": 5.0}
    arguments = arguments_of(scale, model_kwargs=settings)
    module = checkout.load("pipeline.causal_inference")
    pipeline = module.CausalInferencePipeline(
        arguments,
        torch.device(scale.device),
        wrapper(**settings, **wrapped, is_causal=True),
        TextEncoder(),
        Vae(),
    )
    for block in pipeline.generator.model.blocks:
        block.self_attn.max_attention_size = window * scale.tokens  # upstream counts 1560 whatever the grid
    return run_of(pipeline, arguments, scale)


def reward_forcing(path: Path, scale: Scale = SMALL) -> Run:
    """The same pipeline; a block that is evicted is averaged into the sink, which is as long."""
    return self_forcing(path, window=9, sink=3, scale=scale, checkpoint_path="")


def rolling_forcing(path: Path) -> Run:
    """`CausalInferencePipeline`, which sends a block for every noise level and caches the cleanest."""
    checkout = wan(path, "demo_utils.memory")
    causal = checkout.load("wan.modules.causal_model")
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel)
    wrapper = checkout.load("utils.wan_wrapper").WanDiffusionWrapper
    pipeline_class = checkout.load("pipeline.rolling_forcing_inference").CausalInferencePipeline
    for function in (causal.CausalWanSelfAttention.__init__, pipeline_class._initialize_kv_cache):
        with_tokens(function)
    arguments = arguments_of()
    pipeline = pipeline_class(arguments, torch.device("cpu"), wrapper(is_causal=True), TextEncoder(), Vae())
    pipeline.inference = pipeline.inference_rolling_forcing
    run = run_of(pipeline, arguments)
    return replace(run, caches=lambda: pipeline.kv_cache_clean)


def longlive(path: Path, window: int = 9, sink: int = 3, scale: Scale = SMALL) -> Run:
    """`CausalInferencePipeline` of version 1, whose caches are made anew for every video."""
    return run_of(*_longlive(path, "causal_inference", "CausalInferencePipeline", window, sink, scale), scale)


def longlive_interactive(path: Path, window: int = 9, sink: int = 3, *, global_sink: bool = True) -> Run:
    """`InteractiveCausalInferencePipeline` of version 1 with three prompts: at each switch the newest frames run again
    in one pass with the new text, before the window is full and behind it. With `global_sink` the sink stays."""
    kind = "InteractiveCausalInferencePipeline"
    pipeline, arguments = _longlive(path, "interactive_causal_inference", kind, window, sink, global_sink=global_sink)
    plain = run_of(pipeline, arguments)
    frames = arguments.num_frame_per_block

    def switches(chunks: int) -> list[int]:
        return [frames * chunk for chunk in range(2, chunks, 2)][:2]

    def video(seed: int, chunks: int) -> Tensor:
        torch.manual_seed(seed)
        texts = [[f"text {seed} {i}"] for i in range(1 + len(switches(chunks)))]
        with torch.no_grad():
            result: Tensor = pipeline.inference(
                noise(seed, chunks * frames),
                text_prompts_list=texts,
                switch_frame_indices=switches(chunks),
                return_latents=True,
            )[1]
        return result

    return replace(plain, video=video, passes=lambda chunks: plain.passes(chunks) + len(switches(chunks)))


def _longlive(
    path: Path, module: str, kind: str, window: int, sink: int, scale: Scale = SMALL, **own: Any
) -> tuple[Any, SimpleNamespace]:
    checkout = wan(path, "utils.memory", device=scale.device)
    model_class = checkout.load("wan.modules.causal_model").CausalWanModel
    model_class.from_pretrained = small(model_class, scale)
    wrapper = checkout.load("utils.wan_wrapper").WanDiffusionWrapper
    settings = {"local_attn_size": window, "sink_size": sink, "timestep_shift": 5.0}
    arguments = arguments_of(scale, model_kwargs=SimpleNamespace(**settings), **own)
    pipeline = getattr(checkout.load(f"pipeline.{module}"), kind)(
        arguments,
        torch.device(scale.device),
        generator=wrapper(**settings, is_causal=True),
        text_encoder=TextEncoder(),
        vae=Vae(),
    )
    return pipeline, arguments


def causvid(path: Path) -> Run:
    """`InferencePipeline`, which has no end of its cache: videos are as long as that."""
    base = "causvid.models.wan.wan_base.modules"
    packages = ("causvid", "causvid.models.wan", "causvid.models.wan.wan_base", base)
    stand_ins: dict[str, dict[str, Any]] = {f"{base}.{name}": {} for name in WAN_STAND_INS}
    made = {"get_diffusion_wrapper": None, "get_text_encoder_wrapper": None, "get_vae_wrapper": None}
    checkout = Checkout(path, (*packages, "causvid.models"), {})
    Checkout(path, (), stand_ins)
    models = checkout.load("causvid.models")
    vars(models).update(made)
    without_flash_attention(checkout.load(f"{base}.model"), checkout.load(f"{base}.attention"))
    model_class = checkout.load("causvid.models.wan.causal_model").CausalWanModel
    model_class.from_pretrained = small(model_class)
    checkout.load(f"{base}.model").WanModel.from_pretrained = lambda path: nn.Identity()
    models.get_diffusion_wrapper = lambda model_name: (
        checkout.load("causvid.models.wan.wan_wrapper").CausalWanDiffusionWrapper
    )
    models.get_text_encoder_wrapper = lambda model_name: TextEncoder
    models.get_vae_wrapper = lambda model_name: Vae
    # Between two noisy steps its pipeline asks for CUDA by name, so there is one, and the clean pass.
    arguments = arguments_of(denoising_step_list=[1000, 0], model_name="causal_wan")
    pipeline = checkout.load("causvid.models.wan.causal_inference").InferencePipeline(arguments, torch.device("cpu"))
    arguments.denoising_step_list = [1000]
    return run_of(pipeline, arguments)


LONGLIVE_1 = "https://github.com/NVlabs/LongLive (branch v1.0)"

FAMILIES = {
    family.name: family
    for family in (
        Family("self-forcing", "https://github.com/guandeh17/Self-Forcing", self_forcing, 5),
        Family("causal-forcing", "https://github.com/thu-ml/Causal-Forcing", self_forcing, 5),
        Family("causvid", "https://github.com/tianweiy/CausVid", causvid, 4),
        Family("krea", "https://github.com/krea-ai/realtime-video", krea, 3),
        Family("rolling-forcing", "https://github.com/TencentARC/RollingForcing", rolling_forcing, 3, "HF-CLOCK"),
        Family(
            "causal-forcing-long",
            "https://github.com/thu-ml/Causal-Forcing (folder long_video)",
            rolling_forcing,
            3,
            "HF-CLOCK",
        ),
        Family("reward-forcing", "https://github.com/JaydenLyh/Reward-Forcing", reward_forcing, 4, "HF-CLOCK"),
        Family("infinite-forcing", "https://github.com/SOTAMak1r/Infinite-Forcing", self_forcing, 5, "HF-CLOCK"),
        Family("longlive-1", LONGLIVE_1, longlive, 5),
        Family("longlive-1-interactive", LONGLIVE_1, longlive_interactive, 6, checkout="longlive-1", graphs=9),
        Family(
            "longlive-1-interactive-new-sink",
            LONGLIVE_1,
            partial(longlive_interactive, global_sink=False),
            6,
            checkout="longlive-1",
            graphs=9,
            fills=True,
        ),
        Family("longlive-2", "https://github.com/NVlabs/LongLive", longlive_2, 5),
    )
}
