"""What the repositories need in common: a small model with random weights, stand-ins for the parts that are not tested.

Pipelines of these repositories allocate caches of 12 heads with 128 channels, so that is what the models have. They
have few layers and a small grid instead; text encoder and VAE are stand-ins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .checkout import Checkout

HEADS, HEAD_DIM = 12, 128
CHANNELS = 16
TEXT, TEXT_LEN = 64, 512


@dataclass(frozen=True)
class Scale:
    """How large a model and its video are, and what they run on.

    Attributes:
        grid: rows and columns of tokens in a frame. ffn: channels of the feed-forward. levels: timesteps of the noisy
            passes.
    """

    layers: int = 2
    grid: tuple[int, int] = (4, 6)
    ffn: int = 256
    levels: tuple[int, ...] = (1000, 500)
    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16

    @property
    def tokens(self) -> int:
        """In a frame."""
        return self.grid[0] * self.grid[1]


SMALL = Scale()
LAYERS, GRID, TOKENS = SMALL.layers, SMALL.grid, SMALL.tokens


@dataclass(frozen=True)
class Run:
    """A pipeline and how to use it.

    Attributes:
        pipeline: the repository's own, or a loop like it. model: the transformer inside.
        video: makes one video, latents [1, frames, channels, rows, columns], from a seed and a number of chunks.
        caches: the dicts of all layers, once a video has begun.
        passes: of a video with so many chunks.
    """

    pipeline: Any
    model: nn.Module
    video: Callable[[int, int], Tensor]
    caches: Callable[[], list[dict[str, Any]]]
    passes: Callable[[int], int]


@dataclass(frozen=True)
class Family:
    """A repository, or one way of using it.

    Attributes:
        make: gives the same weights every time. chunks: of a video. refusal: the code if `prepare` does not take it.
        checkout: the name of its folder, if it is not that of the family. graphs: the most that it may have.
        fills: whether a pass writes a whole cache, so that no policy holds less.
    """

    name: str
    url: str
    make: Callable[[Path], Run]
    chunks: int
    refusal: str = ""
    checkout: str = ""
    graphs: int = 5
    fills: bool = False


class TextEncoder(nn.Module):
    """Stands in for the text encoder: an embedding for each text, always the same, in its dtype and on its device."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros((), dtype=torch.bfloat16))

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        """[texts, length, channels]."""
        rows = []
        for text in text_prompts:
            generator = torch.Generator().manual_seed(sum(map(ord, text)))
            rows.append(torch.randn(TEXT_LEN, TEXT, generator=generator).bfloat16())
        return {"prompt_embeds": torch.stack(rows).to(self.like)}


class Vae(nn.Module):
    """Stands in for the VAE: pixels are latents."""

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return latent

    class model:  # pipelines empty its cache under this name
        @staticmethod
        def clear_cache() -> None:
            """There is none."""


def small(model_class: Any, scale: Scale = SMALL, **own: Any) -> Any:
    """A function in place of `from_pretrained` that makes a small model with random weights.

    Upstream leaves the last layer zero, so that one is filled too.
    """

    def from_pretrained(*_: Any, **given: Any) -> nn.Module:
        torch.manual_seed(0)
        sizes = {"dim": HEADS * HEAD_DIM, "ffn_dim": scale.ffn, "num_heads": HEADS, "num_layers": scale.layers}
        sizes |= {"text_dim": TEXT, "text_len": TEXT_LEN, "freq_dim": 64, "in_dim": CHANNELS, "out_dim": CHANNELS}
        model = model_class(**{"model_type": "t2v", **sizes, **given, **own})
        torch.nn.init.normal_(model.head.head.weight, std=0.05)
        return model.eval().bfloat16().requires_grad_(False)

    return from_pretrained


def written(name: str, text: str) -> str:
    """The path of a file that a repository wants to read; it is gone when the process ends."""
    path = Path(_folder().name) / name
    path.write_text(text)
    return str(path)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def noise(seed: int, frames: int, scale: Scale = SMALL) -> Tensor:
    generator, (rows, columns) = torch.Generator().manual_seed(seed), scale.grid
    return torch.randn(1, frames, CHANNELS, 2 * rows, 2 * columns, generator=generator).bfloat16()


def with_tokens(function: Any, scale: Scale = SMALL) -> None:
    """Makes a function of a repository that counts 1560 tokens a frame, whatever the grid, count those of its grid."""
    code = function.__code__
    frames = [c // 1560 if isinstance(c, int) and c and c % 1560 == 0 else None for c in code.co_consts]
    counted = tuple(c if n is None else n * scale.tokens for c, n in zip(code.co_consts, frames, strict=True))
    function.__code__ = code.replace(co_consts=counted)


def without_flash_attention(model_module: Any, attention_module: Any) -> None:
    """Cross-attention insists on flash-attn; the repository's own fallback stands in where it is not installed."""
    if not (attention_module.FLASH_ATTN_2_AVAILABLE or attention_module.FLASH_ATTN_3_AVAILABLE):
        model_module.flash_attention = lambda q, k, v, k_lens=None, **_: attention_module.attention(q, k, v)


WAN = ("wan", "wan.modules", "utils", "pipeline")
WAN_STAND_INS: dict[str, dict[str, Any]] = {name: {} for name in ("tokenizers", "t5", "vae", "clip")}


def wan(path: Path, memory: str, *packages: str, device: str = "cpu", **more: dict[str, Any]) -> Checkout:
    stand_ins = {f"wan.modules.{name}": values for name, values in WAN_STAND_INS.items()}
    stand_ins[memory] = {"gpu": torch.device(device), "get_cuda_free_memory_gb": lambda device: 0.0}
    checkout = Checkout(path, (*WAN, *packages), {**stand_ins, **more})
    without_flash_attention(checkout.load("wan.modules.model"), checkout.load("wan.modules.attention"))
    return checkout


def arguments_of(scale: Scale = SMALL, **own: Any) -> SimpleNamespace:
    steps = {"denoising_step_list": list(scale.levels), "warp_denoising_step": False, "context_noise": 0}
    return SimpleNamespace(**{**steps, "num_frame_per_block": 3, "independent_first_frame": False, **own})


def run_of(pipeline: Any, arguments: SimpleNamespace, scale: Scale = SMALL) -> Run:
    """The run of a pipeline of Self-Forcing's form. Latents have the dtype of the model."""
    model = pipeline.generator.model
    pipeline.frame_seq_length, pipeline.num_transformer_blocks = scale.tokens, len(model.blocks)

    def video(seed: int, chunks: int) -> Tensor:
        torch.manual_seed(seed)
        latents = noise(seed, chunks * arguments.num_frame_per_block, scale).to(model.head.head.weight)
        with torch.no_grad():
            return pipeline.inference(latents, [f"text {seed}"], return_latents=True)[1]

    passes = len(arguments.denoising_step_list) + 1
    return Run(pipeline, model, video, lambda: pipeline.kv_cache1, lambda chunks: passes * chunks)
