"""What the causal models that grew out of Wan's code have in common, and what of it stands in the way of tracing.

What is replaced while a prepared model runs, and nothing else:

- the self-attention's `forward` and the model's `unpatchify`, on this one model: the originals, called with a `Grid` in
  place of `grid_sizes`;
- `math.prod` as these functions see it, for a part of a `Grid` only;
- `flash_attention` as the cross-attention's functions see it, and the flags for flash-attn: attention through
  `scaled_dot_product_attention`, which the repositories have themselves as their fallback;
- tensors of one element in the cache dicts (`boxes.py`).
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, LayerCache
from .boxes import BoxedDictCache
from .dict_cache import CACHE_ARGUMENT, TEXT_CACHE_ARGUMENT, forget_text, layer_dicts
from .grid import MATH, GridOf
from .patches import patched

_GRIDS: weakref.WeakKeyDictionary[nn.Module, GridOf] = weakref.WeakKeyDictionary()


class WanAdapter(Adapter):
    """A `CausalWanModel`: blocks with `self_attn` and `cross_attn`, and `_forward_inference` for calls with a cache."""

    replaces: ClassVar[Mapping[str, str]] = {
        "grid_sizes": "the frame grid is handed over as Python ints",
        "_end_index": "cache indices are boxes of a Python int",
        "flash_attention": "cross-attention runs through scaled_dot_product_attention",
    }

    def matches(self, model: nn.Module) -> bool:
        if not hasattr(model, "_forward_inference"):
            return False
        blocks = getattr(model, "blocks", None)
        attention = getattr(blocks[0], "self_attn", None) if isinstance(blocks, nn.ModuleList) and blocks else None
        return attention is not None and self.knows(model, attention)

    @abstractmethod
    def knows(self, model: nn.Module, attention: nn.Module) -> bool:
        """Whether a model with this self-attention is of this family."""

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        from ..layers import layer_of

        caches = layer_dicts(self.arguments(model, args, kwargs).get(CACHE_ARGUMENT))
        return [self.layer_cache(cache, layer_of(cache["k"]) is not None) for cache in caches]

    def layer_cache(self, cache: dict[str, Any], adopted: bool) -> LayerCache:
        """The record of one layer's dict. `adopted`: headforce knows the cache from an earlier call."""
        return BoxedDictCache(cache, adopted=adopted)

    def text_caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        return list(self.arguments(model, args, kwargs).get(TEXT_CACHE_ARGUMENT) or [])

    def forget_text(self, caches: Sequence[Any]) -> None:
        forget_text(caches)

    def install(self, model: nn.Module) -> contextlib.ExitStack:
        grid = GridOf(model)
        undo = contextlib.ExitStack()
        for block in model.blocks:  # type: ignore[union-attr]
            undo.enter_context(grid.handed_to(block.self_attn, "forward"))
        undo.enter_context(grid.handed_to(model, "unpatchify"))
        _GRIDS[model] = grid
        return undo

    @contextlib.contextmanager
    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        _GRIDS[model].see(self.arguments(model, args, kwargs)["x"])
        block = model.blocks[0]  # type: ignore[union-attr, index]
        causal, cross = (namespace_of(type(m).forward) for m in (block.self_attn, block.cross_attn))
        attention = causal["attention"]
        behind = namespace_of(attention)
        with (
            _counted(),
            patched(causal, "math", MATH),
            patched(cross, "flash_attention", _through(attention, cross.get("flash_attention"))),
            patched(behind, "FLASH_ATTN_2_AVAILABLE", False),
            patched(behind, "FLASH_ATTN_3_AVAILABLE", False),
        ):
            yield

    def arguments(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return inspect.signature(model._forward_inference).bind_partial(*args, **kwargs).arguments  # type: ignore[arg-type]


def namespace_of(function: Any) -> dict[str, Any]:
    """The names that a function of the model's code sees."""
    found: dict[str, Any] = inspect.unwrap(function).__globals__
    return found


def variables_of(module: nn.Module) -> tuple[str, ...]:
    """The names of arguments and variables of a module's `forward`, none if that is no Python function."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return () if code is None else code.co_varnames


_THREAD = threading.local()


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Calls of prepared models that are under way in this thread are counted."""
    before = getattr(_THREAD, "calls", 0)
    _THREAD.calls = before + 1
    try:
        yield
    finally:
        _THREAD.calls = before


def _through(attention: Any, original: Any) -> Any:
    """`flash_attention` by the repository's own attention without it; like that, it does not mask by text length.

    Modules are everybody's: a model that another thread runs meanwhile, uncompiled, gets the `original`. The flags for
    flash-attn hold for it too.
    """

    def flash_attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ours = torch.compiler.is_compiling() or getattr(_THREAD, "calls", 0) > 0
        result: Tensor = attention(q, k, v) if ours else original(q, k, v, *args, **kwargs)
        return result

    return flash_attention
