"""`python -m tests.upstream.own_script CHECKOUT SCRIPT ARGS...`: a script of Self-Forcing's lineage, unedited.

It runs without GPU and weights: "cuda" means the CPU, the model is small and has random weights, text encoder and VAE
are stand-ins, and so are the packages that only load data. The pipeline is the repository's, on a small grid.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headforce.run.video import write_film

from .checkout import Checkout
from .run import GRID, LAYERS, TOKENS, TextEncoder, Vae, small, wan

MEMORY = "demo_utils.memory"
NEEDLESS = ("lmdb", "torchvision", "torchvision.transforms")


class PictureVae(Vae):
    """Pixels are the first three channels of the latents."""

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return torch.tanh(latent[:, :, :3].float())


class _OnCpu(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, DEVICE)


DEVICE = torch.device


class Device(metaclass=_OnCpu):
    """`torch.device` until the script asks for its device, which is the CPU; a compiler needs torch's own."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if args[:1] != ("cuda",):
            return DEVICE(*args, **kwargs)
        torch.device = DEVICE  # type: ignore[misc]
        return DEVICE("cpu")


def write_video(path: str, video: Tensor, fps: int) -> None:
    """torchvision's function of this name: [frames, height, width, channels], values to 255."""
    write_film(Path(path), video.to(torch.uint8).numpy(), fps)


def stand_in(path: Path) -> None:
    """Makes what the script imports."""
    memory = {"gpu": DEVICE("cpu"), "get_cuda_free_memory_gb": lambda device: 80.0}
    checkout = wan(path, MEMORY, "demo_utils", **{MEMORY: memory})
    # Only now: diffusers, which that has imported, looks into packages that it finds.
    needless: dict[str, dict[str, Any]] = {name: {} for name in NEEDLESS}
    Checkout(path, (), {**needless, "torchvision.io": {"write_video": write_video}})
    model_class = checkout.load("wan.modules.causal_model").CausalWanModel
    model_class.from_pretrained = small(model_class)
    wrappers = checkout.load("utils.wan_wrapper")
    wrappers.WanTextEncoder, wrappers.WanVAEWrapper = TextEncoder, PictureVae
    original = checkout.load("pipeline.causal_inference").CausalInferencePipeline

    class SmallPipeline(original):  # type: ignore[misc, valid-type]
        """The repository's pipeline, where the sizes of Wan 1.3B at 480p are those of the small model."""

        def __init__(self, args: Any, device: Any) -> None:
            super().__init__(args, device)
            self.frame_seq_length, self.num_transformer_blocks = TOKENS, LAYERS
            for block in self.generator.model.blocks:
                block.self_attn.max_attention_size = self.local_attn_size * TOKENS

        def inference(self, noise: Tensor, **rest: Any) -> Any:
            return super().inference(noise[..., : 2 * GRID[0], : 2 * GRID[1]], **rest)

    pipelines = sys.modules["pipeline"]
    pipelines.CausalInferencePipeline = SmallPipeline  # type: ignore[attr-defined]
    pipelines.CausalDiffusionInferencePipeline = None  # type: ignore[attr-defined]


def main() -> None:
    checkout, script, *arguments = sys.argv[1:]
    path = Path(checkout) / script
    stand_in(Path(checkout))
    torch.device = Device  # type: ignore[assignment, misc]
    sys.argv, sys.path[0] = [str(path), *arguments], checkout
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
