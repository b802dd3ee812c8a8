"""What an adapter says about a family of models, and the registry of adapters."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from enum import Enum
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ...errors import HeadforceError
from ...policy import Rule

ENTRY_POINTS = "headforce.adapters"

Call = tuple[Sequence[Any], Mapping[str, Any]]
"""The arguments of one call of a model, by place and by name."""


class Change(Enum):
    """What a call says about the prompt.

    PROMPT: it is the first with another text. ANEW: it is too, and the first frame that it sends is frame 0 of what
    follows: of the frames before it nothing is kept.
    """

    PROMPT = "prompt"
    ANEW = "anew"


class LayerCache(ABC):
    """The model's cache of one layer, as its caller passes it."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, Tensor]:
        """K and V, as they are now."""

    @abstractmethod
    def replace(self, k: Tensor, v: Tensor) -> None:
        """Puts shells in their place."""

    @abstractmethod
    def give_back(self, k: Tensor, v: Tensor) -> None:
        """Puts ordinary tensors in place of the shells, and undoes what `replace` did besides."""

    @abstractmethod
    def is_empty(self) -> bool | None:
        """True when nothing has been written since the cache was made or reset; None for a cache that does not tell.

        The first frame of a pass then tells: a pass at frame 0 behind others begins another video.
        """

    def forget(self) -> bool:
        """Makes the cache one that nothing was written to, as far as its indices say. False where there are none."""
        return False

    @abstractmethod
    def owner(self) -> object:
        """The object that holds the tensors, the same one for as long as the cache is in use."""

    @property
    def in_use(self) -> bool:
        """False when nobody but this record still refers to the owner."""
        return sys.getrefcount(self.owner()) > _references_of_one()


@cache
def _references_of_one() -> int:
    """What `sys.getrefcount(record.owner())` says when only the record refers to its owner."""

    class Record:
        def __init__(self) -> None:
            self.held: dict[str, int] = {}

        def owner(self) -> object:
            return self.held

        def count(self) -> int:
            return sys.getrefcount(self.owner())

    return Record().count()


class Adapter(ABC):
    """What headforce has to know about a family of models before it can own their caches."""

    name: ClassVar[str]
    replaces: ClassVar[Mapping[str, str]] = {}
    """A word of a line of the family's code that ends graphs -> what is put there while a prepared model runs."""

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """True for models of this family."""

    @abstractmethod
    def caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[LayerCache]:
        """The caches of all layers, in order, from the arguments of a call; empty for a call without a cache."""

    @abstractmethod
    def native(self, model: nn.Module, cache_rows: int, tokens_per_frame: int) -> Rule:
        """What the unmodified model reads."""

    def refusal(self, model: nn.Module) -> HeadforceError | None:
        """Why this model cannot be prepared: for families, and settings of them, that are known and not taken."""
        return None

    def text_caches(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The caches of cross-attention, from the arguments of a call; empty for a call or a family without any."""
        return []

    def forget_text(self, caches: Sequence[Any]) -> None:
        """Makes the next pass compute keys and values of its text anew. `caches` is what `text_caches` gave."""
        if caches:
            raise NotImplementedError(f"{type(self).__name__} names text caches, but does not say how to empty them")

    def change(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Change | None:
        """Whether the prompt has changed before this call, for families whose own pipelines switch prompts.

        None for most. A stream that has not begun, and text caches that are not those of the last call, are no change.
        """
        return None

    def example(self, kind: type[nn.Module]) -> tuple[nn.Module, list[Call]] | None:
        """A small model of a class of this family, with random weights, and calls that fill its cache and evict.

        None for a class of another family, and for a family whose calls nobody has written down.
        """
        return None

    def install(self, model: nn.Module) -> ExitStack:
        """What has to be replaced on this one model for as long as it is prepared; closing the stack undoes it."""
        return ExitStack()

    def shims(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """What has to be replaced in the code of the family while one call runs."""
        return nullcontext()

    @contextmanager
    def traceable(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """One call can be traced inside, on caches that stay the caller's."""
        for layer in self.caches(model, args, kwargs):
            layer.replace(*layer.tensors())
        with self.shims(model, args, kwargs):
            yield


_ADAPTERS: dict[str, Adapter] = {}
_T = TypeVar("_T", bound=type[Adapter])


def adapter(name: str) -> Callable[[_T], _T]:
    """Class decorator: registers an adapter."""

    def register(kind: _T) -> _T:
        kind.name = name
        _ADAPTERS[name] = kind()
        return kind

    return register


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter for `model`; HF-ADAPTER if none knows it. The latest registered goes first: plugins can refine.

    Raises the refusal of an adapter that knows the model and does not take it.
    """
    for candidate in adapters():
        if candidate.matches(model):
            return _taken(model, candidate)
    raise _unknown(model)


def find_model(target: Any) -> tuple[nn.Module, Adapter]:
    """The model that `target` is or holds, and its adapter.

    `target` may be a pipeline: the outermost module in it that an adapter knows is meant, and an adapter that was
    registered later is asked about all of them first. HF-ADAPTER if there is none or more than one; the refusal of an
    adapter that knows the model and does not take it.
    """
    model, known = find_known(target)
    return model, _taken(model, known)


def find_known(target: Any) -> tuple[nn.Module, Adapter]:
    """What `find_model` finds, with an adapter that knows the model and may not take it."""
    modules = modules_of(target)
    for candidate in adapters():
        found = [module for module in modules if candidate.matches(module)]
        inner = {child for module in found for child in module.modules() if child is not module}
        outermost = [module for module in found if module not in inner]
        if len(outermost) > 1:
            names = ", ".join(type(module).__qualname__ for module in outermost)
            raise HeadforceError(
                "HF-ADAPTER", found=f"{len(outermost)} models in one pipeline ({names})", needed="the one to prepare"
            )
        if outermost:
            return outermost[0], candidate
    raise _unknown(target)


def _taken(model: nn.Module, known: Adapter) -> Adapter:
    refusal = known.refusal(model)
    if refusal is not None:
        raise refusal
    return known


def modules_of(target: Any) -> list[nn.Module]:
    """Every module that a model is made of, or those that a pipeline holds."""
    return list(dict.fromkeys(module for root in _roots(target) for module in root.modules()))


def _roots(target: Any) -> list[nn.Module]:
    """The modules that an object is or has as attributes; torch.compile's wrapper stands for what it wraps."""
    target = getattr(target, "_orig_mod", target)
    if isinstance(target, nn.Module):
        return [target]
    held = [getattr(value, "_orig_mod", value) for value in getattr(target, "__dict__", {}).values()]
    return [value for value in held if isinstance(value, nn.Module)]


def _unknown(target: Any) -> HeadforceError:
    return HeadforceError(
        "HF-ADAPTER",
        found=f"a {type(target).__module__}.{type(target).__qualname__}, which no adapter knows",
        needed="a model, or a pipeline with a model, of one of these families: " + ", ".join(_ADAPTERS),
    )


def adapters() -> list[Adapter]:
    """All adapters, of plugins too, the latest registered first."""
    from .. import capture

    for module in pkgutil.iter_modules(capture.__path__):
        importlib.import_module(f"{capture.__name__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return list(reversed(_ADAPTERS.values()))
