"""The model of the rollouts: causal Wan with random weights, and the video it is made to denoise.

Every pass of every variant gets the same latents: each chunk has clean latents of its own, which are brought to the
noise of the pass. What a variant makes of a pass does not come back to it, so rounding does not add up over passes and
outputs can be compared.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headforce.demo.example import load_example, twin

example = load_example("causal-wan")

CHUNK, WINDOW = 3, 21
"""Frames of a chunk, and frames that the unmodified model reads, the chunk included."""

PIXEL_FRAMES = 4
"""Frames of the finished video for each latent frame."""


@dataclass(frozen=True)
class Resolution:
    """A resolution by name; rows and columns of its latents."""

    name: str
    height: int
    width: int


RESOLUTIONS = (Resolution("480p", 60, 104), Resolution("720p", 90, 160), Resolution("1080p", 136, 240))
DRY = Resolution("dry", 8, 12)


def config_of(resolution: Resolution, layers: int | None = None) -> Any:
    """The 1.3B model at a resolution with the window of Self-Forcing, or for `DRY` one that a CPU runs at once."""
    config = replace(example.TINY, num_layers=3) if resolution is DRY else example.WAN_1_3B
    size = {"latent_height": resolution.height, "latent_width": resolution.width, "local_attn_size": WINDOW}
    return replace(config, num_layers=layers or config.num_layers, **size)


def make_model(config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The model with random weights that make attention peaked, so that a wrong key shows."""
    with torch.device(device):
        model = example.CausalWan(config)
    return example.init_random(model.to(dtype), seed=0, peaked=True, device=device).eval().requires_grad_(False)


def cut(model: Any, layers: int) -> Any:
    """The same model with its first layers only; weights are shared."""
    short = twin(model)
    short.blocks = nn.ModuleList(list(short.blocks)[:layers])
    short.config = replace(model.config, num_layers=layers)
    return short


class Video:
    """The latents and timesteps of every pass.

    Args:
        timesteps: of the noisy passes; a clean pass follows.
    """

    def __init__(self, config: Any, timesteps: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.levels = (*timesteps, 0.0)
        self.context = self._normal(0, (1, config.text_len, config.text_dim))
        self.times = [torch.full((1, CHUNK), level, dtype=torch.float32, device=device) for level in self.levels]

    @functools.lru_cache(maxsize=2)  # noqa: B019  as long as the video
    def passes(self, chunk: int) -> list[tuple[Tensor, Tensor]]:
        """(latents [1, channels, 3, height, width], timesteps [1, 3]) of every pass of a chunk."""
        config = self.config
        shape = (1, config.channels, CHUNK, config.latent_height, config.latent_width)
        clean, *noise = (self._normal(1 + 100 * chunk + i, shape) for i in range(len(self.levels)))
        latents = [example.renoise(clean, n, level) for n, level in zip(noise, self.levels[:-1], strict=True)]
        return list(zip((*latents, clean), self.times, strict=True))

    def _normal(self, seed: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)
