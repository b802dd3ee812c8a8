"""The frame grid of the running pass as Python ints, where the models of the Wan family have a tensor of it.

They read it back with `.tolist()` and `math.prod(grid_sizes[0][1:]).item()`, which ends a graph. The grid is known from
the shape of the model's input, so their own functions are handed a `Grid` instead.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ...errors import HeadforceError
from .boxes import IndexBox


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


MATH = types.ModuleType("math")
"""The module `math`, whose `prod` also takes a part of a `Grid`."""
MATH.__dict__.update(vars(math))
MATH.prod = _prod  # type: ignore[attr-defined]


class GridOf:
    """The grid of a model's running pass, read off its input before it is traced."""

    def __init__(self, model: nn.Module) -> None:
        self.patch = tuple(model.patch_size)  # type: ignore[arg-type]
        self.grid = Grid(0, (0, 0, 0))

    def see(self, x: Any) -> None:
        """`x`: a video [C, F, H, W] for each row of the batch."""
        f, h, w = x[0].shape[-3:]
        sizes = (f // self.patch[0], h // self.patch[1], w // self.patch[2])
        if (self.grid.batch, self.grid.sizes) != (len(x), sizes):
            self.grid = Grid(len(x), sizes)

    @contextlib.contextmanager
    def handed_to(self, module: nn.Module, name: str) -> Iterator[None]:
        """The method `name` of this one module is called with a `Grid` for its argument `grid_sizes`.

        The module lives no longer for that. HF-ADAPTER for a method in place of the family's that has no such argument.
        """
        held = weakref.ref(module)
        # An attribute of the instance hides the method of its class; nn.Module would keep a function of its own.
        object.__setattr__(module, name, self._with_grid(module, getattr(type(module), name)))
        del module
        try:
            yield
        finally:
            alive = held()
            if alive is not None:
                object.__delattr__(alive, name)

    def _with_grid(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        takes = list(inspect.signature(original).parameters)
        if "grid_sizes" not in takes:
            raise HeadforceError(
                "HF-ADAPTER",
                site=f"{type(module).__qualname__}.{original.__name__}",
                found=f"a method that takes {', '.join(takes)}",
                needed="that of the family, which has the frame grid as its argument grid_sizes",
            )
        place = takes.index("grid_sizes") - 1

        def call(*args: Any, **kwargs: Any) -> Any:
            if "grid_sizes" in kwargs:
                kwargs["grid_sizes"] = self.grid
            else:
                args = (*args[:place], self.grid, *args[place + 1 :])
            return original(module, *args, **kwargs)

        return call
