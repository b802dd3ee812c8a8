"""How a kernel is cut into tiles, by architecture and shape.

No device has been asked yet: these are tiles that fit into shared memory and keep the inner loop free of spills, which
`headforce kernels` shows and a test asserts. Tuning comes with the first measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Tiles of `block_m` query rows and `block_n` keys; `parts` is the most parts that a read may have."""

    block_m: int = 128
    block_n: int = 64
    warps: int = 8
    stages: int = 3
    parts: int = 1


@dataclass(frozen=True)
class Architecture:
    """`shared`: bytes of shared memory that a program may have."""

    shared: int


ARCHITECTURES = {
    "sm80": Architecture(166912),
    "sm89": Architecture(101376),
    "sm90": Architecture(232448),
    "sm100": Architecture(232448),
    "sm120": Architecture(101376),
    "gfx942": Architecture(65536),
}

INTERPRETED = Config(32, 32, parts=4)
"""Small, as the interpreter takes its time by the block, and tests are to see several blocks."""


def config_of(architecture: str, head_dim: int, dtype: torch.dtype, parts: int) -> Config:
    """The configuration for an architecture of `ARCHITECTURES`, or one that is like none of them."""
    if dtype == torch.float32:
        return Config(32, 32, 8, 2, parts)
    if architecture == "sm90":
        return Config(128, 64, 8, 3, parts)
    if architecture.startswith("gfx"):
        return Config(64, 32, 4, 2, parts)
    return Config(128, 32, 8, 2, parts)


def config_for(query: Tensor, parts: int) -> Config:
    """The configuration for a query [B, S, H, D] whose reads may have so many parts."""
    if query.device.type == "cpu":
        return INTERPRETED
    return config_of(architecture_of(query.device), query.shape[-1], query.dtype, parts)


def architecture_of(device: torch.device) -> str:
    """The name of a GPU's architecture, such as sm90."""
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"
