"""One launch that can be run again: its operands and its target, in memory or in a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..targets import find_target
from ..watch import Launch
from .launches import Deviation, deviation

TENSORS = ("query", "key", "value", "reads", "runs", "theta")
INPUTS, NUMBERS = "inputs.safetensors", "case.json"


@dataclass(frozen=True)
class Case:
    """A launch on a target."""

    launch: Launch
    target: str

    @property
    def result(self) -> Tensor:
        """What the target computes."""
        return find_target(self.target)(*self.launch)

    def deviation(self) -> Deviation | None:
        """Runs the target and compares all rows with attention in float64."""
        return deviation(self.launch, self.result, sampled=None)

    @property
    def fails(self) -> bool:
        """Whether it fails when it is run again. What the target refuses to run is no failure of this kind."""
        try:
            return self.deviation() is not None
        except Exception:
            return False

    @property
    def size(self) -> int:
        """Elements of all operands."""
        return sum(getattr(self.launch, name).numel() for name in TENSORS)

    def files(self) -> dict[str, bytes]:
        """What `load` reads. Tensors are stored without gaps; their strides are kept."""
        from safetensors.torch import save  # lazy: a machine that runs models needs no safetensors

        tensors = {name: getattr(self.launch, name).detach().cpu() for name in TENSORS}
        numbers = {
            "target": self.target,
            "registered_by": find_target(self.target).__module__,
            "device": self.launch.query.device.type,
            "strides": {name: list(tensor.stride()) for name, tensor in tensors.items()},
            "first_pair": self.launch.first_pair,
            "style": self.launch.style,
            "scale": self.launch.scale,
        }
        stored = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        return {INPUTS: stored, NUMBERS: (json.dumps(numbers, indent=1) + "\n").encode()}

    @property
    def digest(self) -> str:
        """The same for the same operands and target."""
        return hashlib.sha256(b"".join(self.files().values())).hexdigest()[:12]

    @staticmethod
    def load(folder: Path) -> Case:
        """A case that was written; on the device it failed on, or on the CPU where there is none such."""
        from safetensors.torch import load_file  # lazy, as above

        numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        stored = load_file(folder / INPUTS)
        device = numbers["device"] if numbers["device"] != "cuda" or torch.cuda.is_available() else "cpu"
        tensors = {name: _strided(stored[name], numbers["strides"][name]).to(device) for name in TENSORS}
        rest: dict[str, Any] = {name: numbers[name] for name in ("first_pair", "style", "scale")}
        return Case(Launch(**{**tensors, **rest}), numbers["target"])


def _strided(tensor: Tensor, strides: list[int]) -> Tensor:
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
