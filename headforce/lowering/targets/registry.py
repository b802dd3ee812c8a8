"""The registry of targets. A target is one function in one file of this folder, or of a plugin."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Protocol

import torch
from torch import Tensor

from ...errors import HeadforceError, nearest

ENTRY_POINTS = "headforce.targets"


class Target(Protocol):
    """The signature of `kernels.reference.ragged_attention`, which says what each argument means."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        reads: Tensor,
        runs: Tensor,
        theta: Tensor,
        first_pair: int,
        style: str,
        scale: float,
    ) -> Tensor: ...


_TARGETS: dict[str, Target] = {}
_LEAST_ROWS: dict[str, int] = {}
_FUSES_ROPE: set[str] = set()
_CAPTURABLE: set[str] = set()


def target(
    name: str, *, least_rows: int = 1, fuses_rope: bool = False, capturable: bool = False
) -> Callable[[Target], Target]:
    """Decorator: registers a target under the name that `options={"target": name}` uses.

    Args:
        least_rows: how short a run may be; the compiled model refuses frames of fewer tokens.
        fuses_rope: RoPE of the chunk and its page write become `headforce::rotate_and_write`, in float32; otherwise
            the model's own arithmetic stays.
        capturable: it reads tables where they are and never waits for the device, so that CUDA graphs can capture it.
    """

    def register(function: Target) -> Target:
        _TARGETS[name] = function
        _LEAST_ROWS[name] = least_rows
        if fuses_rope:
            _FUSES_ROPE.add(name)
        if capturable:
            _CAPTURABLE.add(name)
        return function

    return register


def load_targets() -> dict[str, Target]:
    """All targets by name, those of installed plugins included."""
    from .. import targets

    for module in pkgutil.iter_modules(targets.__path__):
        importlib.import_module(f"{targets.__name__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_TARGETS.items()))


def find_target(name: str) -> Target:
    """The target called `name`; HF-TARGET with the nearest valid name if there is none."""
    if name not in _TARGETS:
        known = load_targets()
        if name not in known:
            raise HeadforceError(
                "HF-TARGET", found=f"target {name!r}{nearest(name, known)}", needed="one of " + ", ".join(known)
            )
    return _TARGETS[name]


def default_target(device: torch.device) -> str:
    """What computes attention if nobody chose: `triton` on a GPU, `sdpa` elsewhere."""
    return "triton" if device.type == "cuda" else "sdpa"


def fuses_rope(name: str) -> bool:
    """Whether the target comes with a rotation of its own."""
    find_target(name)
    return name in _FUSES_ROPE


def capturable(name: str) -> bool:
    """Whether CUDA graphs can capture the target."""
    find_target(name)
    return name in _CAPTURABLE


def least_rows(name: str) -> int:
    """How short a run of rows may be for the target."""
    find_target(name)
    return _LEAST_ROWS[name]


def check_rows(name: str, rows: int) -> None:
    """HF-KERNEL if frames, or parts of frames, of `rows` rows are too short for the target."""
    if rows < least_rows(name):
        raise HeadforceError(
            "HF-KERNEL",
            found=f"frames or parts of frames of {rows} tokens for target {name}",
            needed=f"at least {least_rows(name)}, or another target",
        )
