"""Krea realtime: the server's session, which rebuilds the KV cache from past latents before every block."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from .checkout import Checkout
from .run import GRID, TOKENS, WAN, WAN_STAND_INS, Run, TextEncoder, arguments_of, small, with_tokens

HEADS, HEAD_DIM = 3, 24  # the pipeline takes them from the model
CONTEXT, BLOCK, STEPS = 3, 3, 2  # frames of the context and of a block, denoising steps
BLOCKS = 4  # of a session; a shorter video is its beginning

WEB = ("fastapi", "fastapi.middleware", "fastapi.middleware.cors", "fastapi.responses", "msgpack", "cv2")
NOT_NEEDED = (*WEB, "torchvision", "torchvision.transforms", "torchvision.transforms.functional")


class VaeDecoder(nn.Module):
    """Stands in for the decoder: four frames of pixels for each of the latents, its first three channels."""

    def forward(self, latents: Tensor, *cache: Any) -> tuple[Tensor, tuple[Any, ...]]:
        """[1, F, C, rows, columns] -> [1, 4 F, 3, rows, columns]."""
        return latents[:, :, :3].repeat_interleave(4, dim=1), cache


def encode(*_: Any, frames: Tensor, **__: Any) -> tuple[Tensor, None]:
    """Stands in for the encoder: pixels [F, 3, rows, columns] -> latents [16, F, rows, columns]."""
    return frames.float().repeat(1, 6, 1, 1)[:, :16].transpose(0, 1), None


def krea(path: Path) -> Run:
    """`GenerationSession` of the server. It asks for CUDA by name, for the current device, streams and events."""
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]
    stand_ins = {f"wan.modules.{name}": values for name, values in WAN_STAND_INS.items()}
    stand_ins |= {"demo_utils.memory": {}, "settings": {"MODEL_FOLDER": ""}}
    checkout = Checkout(path, (*WAN, "demo_utils"), stand_ins)
    causal = checkout.load("wan.modules.causal_model")
    causal.flex_attention = flex_attention  # upstream compiles it by itself, which gives other bits
    causal.CausalWanModel.from_pretrained = small(causal.CausalWanModel, dim=HEADS * HEAD_DIM, num_heads=HEADS)
    with_tokens(causal.CausalWanSelfAttention.forward)
    transformer = checkout.load("utils.wan_wrapper").WanDiffusionWrapper(is_causal=True)
    for block in transformer.model.blocks:
        block.self_attn.fuse_projections()
    pipeline_class = checkout.load("pipeline.causal_inference").CausalInferencePipeline
    checkout.load("pipeline").CausalInferencePipeline = pipeline_class
    pipeline = pipeline_class(arguments_of(), torch.device("cpu"), transformer, TextEncoder(), VaeDecoder())
    pipeline.frame_seq_length = TOKENS
    values = {
        "fastapi": {"FastAPI": mock.MagicMock(), "File": mock.MagicMock()},
        "torchvision": {"transforms": mock.MagicMock()},
    }
    Checkout(path, (), {**{name: {} for name in NOT_NEEDED}, **values})
    with mock.patch.multiple(torch.cuda, Stream=mock.MagicMock(), Event=mock.MagicMock()):
        server = checkout.load("release_server")
    server.encode_video_latent = encode
    server.torch = types.ModuleType("torch")
    vars(server.torch).update(vars(torch), cuda=mock.MagicMock(current_device=torch.cuda.current_device))
    models = server.Models(pipeline.text_encoder, transformer, pipeline, None, pipeline.vae)

    def video(seed: int, chunks: int) -> Tensor:
        given = {"kv_cache_num_frames": CONTEXT, "num_denoising_steps": STEPS, "num_blocks": BLOCKS}
        size = {"height": 16 * GRID[0], "width": 16 * GRID[1]}
        params = server.GenerateParams(prompt=f"text {seed}", seed=seed, **given, **size)
        session = server.GenerationSession(params, types.SimpleNamespace(use_taehv=False), models=models)
        session.frame_callback = lambda *_: None
        for _ in range(chunks):
            session.generate_block_internal(models)
        return session.all_latents[:, : chunks * BLOCK].clone()

    return Run(pipeline, transformer.model, video, lambda: pipeline.kv_cache1, lambda chunks: (STEPS + 1) * chunks - 1)
