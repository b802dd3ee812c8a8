"""Self-Forcing and the models that kept its code: Causal-Forcing, and others with the same `causal_model.py`.

Two things in that code keep Dynamo from tracing it: cache indices and the frame grid are tensors that are read back
with `.item()` and `.tolist()`. Neither is edited. The indices in the cache dicts become boxes of a Python int, and the
model's own functions are handed a grid of Python ints where they expect the tensor.

What is replaced while a prepared model runs, and nothing else:

- `CausalWanSelfAttention.forward` and `CausalWanModel.unpatchify`, on this one model: the originals, called with a
  `Grid` in place of `grid_sizes`;
- `math.prod` as seen by the model's module, for a part of a `Grid` only;
- `flash_attention` as seen by the cross-attention's module, and the module's flags for flash-attn: attention through
  `scaled_dot_product_attention`, which the repository has itself as its fallback.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...policy import Rule
from .adapter import Adapter, LayerCache, adapter
from .dict_cache import CACHE_ARGUMENT, TEXT_CACHE_ARGUMENT, DictCache, forget_text, window_rule
from .patches import patched

_INDICES = ("global_end_index", "local_end_index")


class IndexBox:
    """A cache index as the model uses it: `.item()` reads, `.fill_()` writes, and Dynamo sees a Python int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def item(self) -> int:
        return self.value

    def fill_(self, value: int) -> IndexBox:
        self.value = value
        return self


class BoxedDictCache(DictCache):
    """A layer's dict whose indices are tensors of one element."""

    def __init__(self, cache: dict[str, Any], *, adopted: bool) -> None:
        super().__init__(cache)
        if adopted:
            self._box()

    def _box(self) -> None:
        # A pipeline that starts another video puts new tensors here, so this is looked at before every call.
        for name in _INDICES:
            if isinstance(self.cache[name], Tensor):
                self.cache[name] = IndexBox(int(self.cache[name].item()))

    def replace(self, k: Tensor, v: Tensor) -> None:
        super().replace(k, v)
        self._box()

    def give_back(self, k: Tensor, v: Tensor) -> None:
        super().give_back(k, v)
        for name in _INDICES:
            if isinstance(self.cache[name], IndexBox):
                self.cache[name] = torch.tensor([self.cache[name].value], dtype=torch.long, device=k.device)

    def is_empty(self) -> bool:
        return int(self.cache["global_end_index"].item()) == 0


class Grid:
    """`grid_sizes` of one pass, [B, 3] as (frames, rows, columns), in Python ints."""

    def __init__(self, batch: int, sizes: tuple[int, int, int]) -> None:
        self.batch = batch
        self.sizes = sizes

    def tolist(self) -> list[list[int]]:
        return [list(self.sizes) for _ in range(self.batch)]

    def __getitem__(self, index: int) -> GridRow:
        return GridRow(self.sizes)

    def __iter__(self) -> Iterator[GridRow]:
        return iter([GridRow(self.sizes)] * self.batch)


class GridRow:
    """One row of a `Grid`; a slice of it is something that `math.prod` multiplies."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    def __getitem__(self, part: slice) -> GridRow:
        return GridRow(self.sizes[part])


def _prod(values: Any, **keywords: Any) -> Any:
    return IndexBox(math.prod(values.sizes)) if isinstance(values, GridRow) else math.prod(values, **keywords)


_MATH = types.ModuleType("math")
_MATH.__dict__.update(vars(math))
_MATH.prod = _prod  # type: ignore[attr-defined]


@adapter("self-forcing")
class SelfForcingAdapter(Adapter):
    """`CausalWanModel` of Self-Forcing (github.com/guandeh17/Self-Forcing), unmodified."""

    def matches(self, model: nn.Module) -> bool:
        blocks = getattr(model, "blocks", None)
        attention = getattr(blocks[0], "self_attn", None) if isinstance(blocks, nn.ModuleList) and blocks else None
        return hasattr(model, "_forward_inference") and hasattr(attention, "max_attention_size")

    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        from ..layers import layer_of

        caches = self._arguments(model, args, kwargs).get(CACHE_ARGUMENT)
        return [BoxedDictCache(cache, adopted=layer_of(cache["k"]) is not None) for cache in caches or []]

    def text_caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        return list(self._arguments(model, args, kwargs).get(TEXT_CACHE_ARGUMENT) or [])

    def forget_text(self, caches: Sequence[Any]) -> None:
        forget_text(caches)

    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        attention = model.blocks[0].self_attn  # type: ignore[union-attr, index]
        return window_rule(
            held=cache_rows // tokens_per_frame,
            read=int(attention.max_attention_size) // tokens_per_frame,
            sink=int(attention.sink_size),
        )

    def install(self, model: nn.Module) -> contextlib.ExitStack:
        grid = _GridOf(model)
        undo = contextlib.ExitStack()
        for block in model.blocks:  # type: ignore[union-attr]
            undo.enter_context(_override(block.self_attn, "forward", _with_grid(block.self_attn, "forward", grid)))
        undo.enter_context(_override(model, "unpatchify", _with_grid(model, "unpatchify", grid)))
        _GRIDS[model] = grid
        return undo

    @contextlib.contextmanager
    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        _GRIDS[model].see(self._arguments(model, args, kwargs)["x"])
        causal = sys.modules[type(model).__module__]
        cross = sys.modules[type(model.blocks[0].cross_attn).__module__]  # type: ignore[union-attr, index]
        attention = sys.modules[causal.attention.__module__]
        with (
            patched(causal, "math", _MATH),
            patched(cross, "flash_attention", _sdpa(attention)),
            patched(attention, "FLASH_ATTN_2_AVAILABLE", False),
            patched(attention, "FLASH_ATTN_3_AVAILABLE", False),
        ):
            yield

    def _arguments(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return inspect.signature(model._forward_inference).bind_partial(*args, **kwargs).arguments  # type: ignore[arg-type]


class _GridOf:
    """The grid of the running pass, read off the model's input before it is traced."""

    def __init__(self, model: nn.Module) -> None:
        self.patch = tuple(model.patch_size)  # type: ignore[arg-type]
        self.grid = Grid(0, (0, 0, 0))

    def see(self, x: Any) -> None:
        f, h, w = x[0].shape[-3:]
        sizes = (f // self.patch[0], h // self.patch[1], w // self.patch[2])
        if (self.grid.batch, self.grid.sizes) != (len(x), sizes):
            self.grid = Grid(len(x), sizes)


_GRIDS: weakref.WeakKeyDictionary[nn.Module, _GridOf] = weakref.WeakKeyDictionary()


def _with_grid(module: nn.Module, name: str, grid: _GridOf) -> Any:
    """The method `name` of `module`, called with a `Grid` for its argument `grid_sizes`."""
    original = getattr(type(module), name)
    place = list(inspect.signature(original).parameters).index("grid_sizes") - 1

    def call(*args: Any, **kwargs: Any) -> Any:
        if "grid_sizes" in kwargs:
            kwargs["grid_sizes"] = grid.grid
        else:
            args = (*args[:place], grid.grid, *args[place + 1 :])
        return original(module, *args, **kwargs)

    return call


@contextlib.contextmanager
def _override(module: nn.Module, name: str, function: Any) -> Iterator[None]:
    """An attribute of one instance that hides the method of its class."""
    object.__setattr__(module, name, function)
    try:
        yield
    finally:
        object.__delattr__(module, name)


def _sdpa(module: types.ModuleType) -> Any:
    """The repository's own attention without flash-attn. It does not mask by text length, as its fallback never did."""

    def flash_attention(q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor | None = None, **_: Any) -> Tensor:
        result: Tensor = module.attention(q, k, v)
        return result

    return flash_attention
