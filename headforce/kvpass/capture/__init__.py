"""Adapters: what is known about families of models, one file each."""

from .adapter import (
    Adapter,
    Call,
    Change,
    LayerCache,
    adapter,
    adapters,
    find_adapter,
    find_known,
    find_model,
    modules_of,
)

__all__ = [
    "Adapter",
    "Call",
    "Change",
    "LayerCache",
    "adapter",
    "adapters",
    "find_adapter",
    "find_known",
    "find_model",
    "modules_of",
]
