"""LongLive 2.0: `CausalDiffusionInferencePipeline`, as released: RoPE at the frames of the video, no guidance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .checkout import Checkout
from .run import CHANNELS, GRID, LAYERS, Run, TextEncoder, Vae, noise, small

NAME = "Wan2.2-TI2V-5B"
HEADS, HEAD_DIM = 3, 24  # the pipeline takes them from a table
BLOCK, STEPS = 2, 2  # frames of a block, denoising steps
WINDOW, SINK = 6, 2


class Arguments(dict):  # type: ignore[type-arg]
    """Settings by name and by key, as the repository's are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def longlive_2(path: Path) -> Run:
    """The model is called through a wrapper that hands it the cache indices in a module's dict."""
    os.environ.update(LLV2_TRITON_ROPE="0", LLV2_TRITON_ADALN="0")  # kernels for CUDA
    stand_ins: dict[str, dict[str, Any]] = {f"wan_5b.modules.{n}": {} for n in ("tokenizers", "t5", "vae2_2")}
    stand_ins |= {
        "transformers.models.x_clip.modeling_x_clip": {},
        "utils.dataset": {"DEFAULT_SCENE_CUT_PREFIX": "cut"},
    }
    checkout = Checkout(path, ("wan_5b", "wan_5b.modules", "wan_5b.utils", "utils", "pipeline"), {})
    import diffusers.models.modeling_utils  # noqa: F401  before a part of transformers is stood in for

    Checkout(path, (), stand_ins)
    model_class = checkout.load("wan_5b.modules.causal_model").CausalWanModel
    attention = checkout.load("wan_5b.modules.attention")
    for name in ("wan_5b.modules.causal_model", "wan_5b.modules.model"):
        checkout.load(name).flash_attention = lambda q, k, v, k_lens=None, **_: attention.attention(q, k, v)
    model_class.from_pretrained = small(model_class, dim=HEADS * HEAD_DIM, num_heads=HEADS)
    table = checkout.load("utils.config").wan_default_config[NAME]
    table.update(num_heads=HEADS, head_dim=HEAD_DIM, num_transformer_blocks=LAYERS)
    settings = Arguments(local_attn_size=WINDOW, sink_size=SINK, timestep_shift=5.0, num_frame_per_block=BLOCK)
    arguments = Arguments(
        model_kwargs=settings,
        image_or_video_shape=[1, BLOCK, CHANNELS, 2 * GRID[0], 2 * GRID[1]],
        num_frame_per_block=BLOCK,
        inference=Arguments(sampling_steps=STEPS, guidance_scale=1.0),
    )
    wrapper = checkout.load("utils.wan_5b_wrapper").WanDiffusionWrapper(**settings, is_causal=True)
    module = checkout.load("pipeline.causal_diffusion_inference")
    pipeline = module.CausalDiffusionInferencePipeline(arguments, torch.device("cpu"), wrapper, TextEncoder(), Vae())

    def video(seed: int, chunks: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad(), mock.patch.object(module, "tqdm", list):
            prompts = [[f"text {seed}"] * chunks]
            return pipeline.inference(noise(seed, chunks * BLOCK), prompts, return_latents=True)

    return Run(pipeline, wrapper.model, video, lambda: pipeline.kv_cache_pos, lambda chunks: (STEPS + 1) * chunks)
