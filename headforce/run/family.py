"""Whether a module that is called is a model of a family that an adapter knows."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torch import nn

from ..errors import HeadforceError

if TYPE_CHECKING:
    from ..kvpass.capture import Adapter


@functools.cache
def made_by_torch(kind: type[nn.Module]) -> bool:
    """Whether a class is torch's own through and through, such as `Linear`; wrappers pass on the attributes of what
    they wrap, and so look like it."""
    return all(base.__module__.split(".")[0] in ("torch", "builtins", "typing", "abc") for base in kind.__mro__)


@functools.cache
def _adapters() -> list[Adapter]:
    from ..kvpass.capture.adapter import adapters

    return adapters()


def family_of(model: nn.Module) -> Adapter | None:
    """The adapter for `model`; None for a model of no family, and for one that only holds a model of a family.

    A family that `prepare` does not take has one too, which says why when it is asked for caches.
    """
    from ..kvpass.capture import find_model

    if not any(_matches(adapter, model) for adapter in _adapters()):
        return None
    try:
        found, adapter = find_model(model)
    except HeadforceError as error:
        if error.code == "HF-ADAPTER":  # several models: each is seen by itself
            return None
        return next(adapter for adapter in _adapters() if _matches(adapter, model))
    return adapter if found is model else None


def _matches(adapter: Adapter, model: nn.Module) -> bool:
    try:
        return adapter.matches(model)
    except (TypeError, ValueError):  # a forward without a signature, such as that of a scripted module
        return False
