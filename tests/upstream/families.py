"""The repositories: how the model and the pipeline of each are made, small, with random weights, from a checkout.

Pipelines of these repositories allocate caches of 12 heads with 128 channels, so that is what the models have. They
have few layers and a small grid instead; text encoder and VAE are stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .checkout import Checkout

HEADS, HEAD_DIM = 12, 128
LAYERS = 2
CHANNELS = 16
TEXT, TEXT_LEN = 64, 512
GRID = (4, 6)
TOKENS = GRID[0] * GRID[1]


@dataclass(frozen=True)
class Run:
    """A pipeline and how to use it.

    Attributes:
        pipeline: the repository's own, or a loop like it. model: the transformer inside.
        video: makes one video, latents [1, frames, channels, rows, columns], from a seed and a number of chunks.
        caches: the dicts of all layers, once a video has begun.
        frames: of a chunk. passes: over a chunk.
    """

    pipeline: Any
    model: nn.Module
    video: Callable[[int, int], Tensor]
    caches: Callable[[], list[dict[str, Any]]]
    frames: int
    passes: int


@dataclass(frozen=True)
class Family:
    """A repository. `make` gives the same weights every time."""

    name: str
    url: str
    make: Callable[[Path], Run]
    chunks: int
    sites: str = "all self-attention rewritten, cross-attention excluded"


class TextEncoder(nn.Module):
    """Stands in for the text encoder: an embedding for each text, always the same."""

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        """[texts, length, channels]."""
        rows = []
        for text in text_prompts:
            generator = torch.Generator().manual_seed(sum(map(ord, text)))
            rows.append(torch.randn(TEXT_LEN, TEXT, generator=generator).bfloat16())
        return {"prompt_embeds": torch.stack(rows)}


class Vae(nn.Module):
    """Stands in for the VAE: pixels are latents."""

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return latent

    class model:  # pipelines empty its cache under this name
        @staticmethod
        def clear_cache() -> None:
            """There is none."""


def _small(model_class: Any, **own: Any) -> Any:
    """A function in place of `from_pretrained` that makes a small model with random weights.

    Upstream leaves the last layer zero, so that one is filled too.
    """

    def from_pretrained(*_: Any, **given: Any) -> nn.Module:
        torch.manual_seed(0)
        model = model_class(
            model_type="t2v",
            dim=HEADS * HEAD_DIM,
            ffn_dim=256,
            num_heads=HEADS,
            num_layers=LAYERS,
            text_dim=TEXT,
            text_len=TEXT_LEN,
            freq_dim=64,
            in_dim=CHANNELS,
            out_dim=CHANNELS,
            **{**given, **own},
        )
        torch.nn.init.normal_(model.head.head.weight, std=0.05)
        return model.eval().bfloat16().requires_grad_(False)

    return from_pretrained


def _noise(seed: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, CHANNELS, 2 * GRID[0], 2 * GRID[1], generator=generator).bfloat16()


def _without_flash_attention(model_module: Any, attention_module: Any) -> None:
    """Cross-attention insists on flash-attn; the repository's own fallback stands in where it is not installed."""
    if not (attention_module.FLASH_ATTN_2_AVAILABLE or attention_module.FLASH_ATTN_3_AVAILABLE):
        model_module.flash_attention = lambda q, k, v, k_lens=None, **_: attention_module.attention(q, k, v)


WAN = ("wan", "wan.modules", "utils", "pipeline")
WAN_STAND_INS: dict[str, dict[str, Any]] = {name: {} for name in ("tokenizers", "t5", "vae", "clip")}


def _wan(path: Path, memory: str, *packages: str, **more: dict[str, Any]) -> Checkout:
    stand_ins = {f"wan.modules.{name}": values for name, values in WAN_STAND_INS.items()}
    stand_ins[memory] = {"gpu": torch.device("cpu"), "get_cuda_free_memory_gb": lambda device: 0.0}
    checkout = Checkout(path, (*WAN, *packages), {**stand_ins, **more})
    _without_flash_attention(checkout.load("wan.modules.model"), checkout.load("wan.modules.attention"))
    return checkout


def _arguments(**own: Any) -> SimpleNamespace:
    steps = {"denoising_step_list": [1000, 500], "warp_denoising_step": False, "context_noise": 0}
    return SimpleNamespace(**{**steps, "num_frame_per_block": 3, "independent_first_frame": False, **own})


def self_forcing(path: Path, window: int = 6, sink: int = 1) -> Run:
    """`CausalInferencePipeline`, whose caches stay and are reset for the next video."""
    checkout = _wan(path, "demo_utils.memory", "demo_utils")
    model_class = checkout.load("wan.modules.causal_model").CausalWanModel
    model_class.from_pretrained = _small(model_class)
    wrapper = checkout.load("utils.wan_wrapper").WanDiffusionWrapper
    arguments = _arguments(model_kwargs={"local_attn_size": window, "sink_size": sink, "timestep_shift": 5.0})
    module = checkout.load("pipeline.causal_inference")
    pipeline = module.CausalInferencePipeline(
        arguments, torch.device("cpu"), wrapper(**arguments.model_kwargs, is_causal=True), TextEncoder(), Vae()
    )
    for block in pipeline.generator.model.blocks:
        block.self_attn.max_attention_size = window * TOKENS  # upstream counts 1560 tokens a frame whatever the grid
    return _run(pipeline, arguments)


def longlive(path: Path, window: int = 9, sink: int = 3) -> Run:
    """`CausalInferencePipeline` of version 1, whose caches are made anew for every video."""
    checkout = _wan(path, "utils.memory")
    model_class = checkout.load("wan.modules.causal_model").CausalWanModel
    model_class.from_pretrained = _small(model_class)
    wrapper = checkout.load("utils.wan_wrapper").WanDiffusionWrapper
    settings = {"local_attn_size": window, "sink_size": sink, "timestep_shift": 5.0}
    arguments = _arguments(model_kwargs=SimpleNamespace(**settings))
    module = checkout.load("pipeline.causal_inference")
    pipeline = module.CausalInferencePipeline(
        arguments, torch.device("cpu"), wrapper(**settings, is_causal=True), TextEncoder(), Vae()
    )
    return _run(pipeline, arguments)


def _run(pipeline: Any, arguments: SimpleNamespace) -> Run:
    pipeline.frame_seq_length, pipeline.num_transformer_blocks = TOKENS, LAYERS

    def video(seed: int, chunks: int) -> Tensor:
        torch.manual_seed(seed)
        noise = _noise(seed, chunks * arguments.num_frame_per_block)
        with torch.no_grad():
            return pipeline.inference(noise, [f"text {seed}"], return_latents=True)[1]

    passes = len(arguments.denoising_step_list) + 1
    return Run(
        pipeline, pipeline.generator.model, video, lambda: pipeline.kv_cache1, arguments.num_frame_per_block, passes
    )


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
    _without_flash_attention(checkout.load(f"{base}.model"), checkout.load(f"{base}.attention"))
    model_class = checkout.load("causvid.models.wan.causal_model").CausalWanModel
    model_class.from_pretrained = _small(model_class)
    checkout.load(f"{base}.model").WanModel.from_pretrained = lambda path: nn.Identity()
    models.get_diffusion_wrapper = lambda model_name: (
        checkout.load("causvid.models.wan.wan_wrapper").CausalWanDiffusionWrapper
    )
    models.get_text_encoder_wrapper = lambda model_name: TextEncoder
    models.get_vae_wrapper = lambda model_name: Vae
    # Between two noisy steps its pipeline asks for CUDA by name, so there is one, and the clean pass.
    arguments = _arguments(denoising_step_list=[1000, 0], model_name="causal_wan")
    pipeline = checkout.load("causvid.models.wan.causal_inference").InferencePipeline(arguments, torch.device("cpu"))
    arguments.denoising_step_list = [1000]
    return _run(pipeline, arguments)


FAMILIES = {
    family.name: family
    for family in (
        Family("self-forcing", "https://github.com/guandeh17/Self-Forcing", self_forcing, 5),
        Family("causal-forcing", "https://github.com/thu-ml/Causal-Forcing", self_forcing, 5),
        Family("causvid", "https://github.com/tianweiy/CausVid", causvid, 4),
        Family("longlive-1", "https://github.com/NVlabs/LongLive (branch v1.0)", longlive, 5),
    )
}
