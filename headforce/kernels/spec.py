"""What a kernel is made for: everything that is settled before it is compiled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import Config, block_width
from .rotation import SPLIT_HALF

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Spec:
    """One kernel.

    Attributes:
        dtype: of the query and the output. cache_dtype: of keys and values.
        head_dim: width of a query and a key. value_dim: width of a value.
        rotation: how pairs of RoPE lie (`kernels.rotation`), or None where no run is shifted.
        parts: whether reads may be cut into parts. lse: whether the log of the sum of exponentials is wanted.
        descriptors: whether whole blocks are loaded by tensor descriptors (TMA).
        config: tiles.
    """

    dtype: torch.dtype
    cache_dtype: torch.dtype
    head_dim: int
    value_dim: int
    rotation: str | None
    parts: bool
    lse: bool
    descriptors: bool
    config: Config

    @property
    def block_d(self) -> int:
        return block_width(self.head_dim)

    @property
    def block_dv(self) -> int:
        return block_width(self.value_dim)

    def settings(self) -> dict[str, int | str]:
        """The settings of the template, by name."""
        return {
            "D": self.head_dim,
            "DV": self.value_dim,
            "BLOCK_D": self.block_d,
            "BLOCK_DV": self.block_dv,
            "BLOCK_M": self.config.block_m,
            "BLOCK_N": self.config.block_n,
            "STAGES": self.config.stages,
            "PADDED": (self.head_dim, self.value_dim) != (self.block_d, self.block_dv),
            "ROTATED": self.rotation is not None,
            "SPLIT_HALF": self.rotation == SPLIT_HALF,
            "PARTS": self.parts,
            "LSE": self.lse,
            "CONVERTED": self.cache_dtype != self.dtype,
            "DESCRIPTORS": self.descriptors,
            "PRECISION": "ieee" if self.dtype == torch.float32 else "tf32",
        }

    def __str__(self) -> str:
        features = [
            str(self.dtype).removeprefix("torch."),
            f"head dim {self.head_dim}" + (f" and {self.value_dim}" if self.value_dim != self.head_dim else ""),
            f"tiles of {self.config.block_m} x {self.config.block_n}",
            f"{self.config.warps} warps",
        ]
        if self.cache_dtype != self.dtype:
            features.append(f"a cache of {str(self.cache_dtype).removeprefix('torch.')}")
        features.append(
            "no rotation" if self.rotation is None else f"rotation of {self.rotation.replace('_', ' ')} pairs"
        )
        features += [name for name in ("parts", "lse", "descriptors") if getattr(self, name)]
        return ", ".join(features)
