"""Adapters: what is known about families of models, one file each."""

from .adapter import Adapter, LayerCache, adapter, find_adapter, find_model

__all__ = ["Adapter", "LayerCache", "adapter", "find_adapter", "find_model"]
