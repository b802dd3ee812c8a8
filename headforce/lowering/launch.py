"""Launching a kernel: where, with which of its arguments, and what is said when it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from ..errors import HeadforceError
from ..kernels import interpreter
from ..kernels.config import Config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels take."""


def launch(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], config: Config) -> None:
    """Launches a kernel, which has only the arguments that its spec needs, on the device of its tensors."""
    chosen = {name: arguments[name] for name in kernel.arg_names}
    device = arguments["out"].device
    guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with guard:
            kernel[grid](**chosen, num_warps=config.warps, num_stages=config.stages)
    except OutOfResources as error:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"{kernel.__name__} with {config}, which takes {error.required} of {error.name}",
            needed=f"at most {error.limit} on this device; `headforce tune` finds tiles that fit",
        ) from error


def named(name: str, steps: tuple[int, ...]) -> dict[str, int]:
    """The steps of a tensor from one batch row, row and head to the next, under the names that kernels have."""
    return {f"{name}_{axis}": step for axis, step in zip(("batch", "row", "head"), steps, strict=True)}


def prepare_interpreter(device: torch.device) -> None:
    """The repairs that the interpreter needs, if kernels run in it; HF-KERNEL if nothing runs them on `device`."""
    if interpreter.enabled():
        interpreter.install()
    elif device.type == "cpu":
        raise HeadforceError(
            "HF-KERNEL",
            found="tensors on the CPU",
            needed="a GPU, or TRITON_INTERPRET=1 set before triton is imported",
        )
