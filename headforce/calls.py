"""A model and calls of it, as a user names them: `package.module:NAME` or `FILE.py:NAME`."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .errors import HeadforceError
from .kvpass.capture import Call, adapters, modules_of

FORMS = "(model, args, kwargs), (model, [(args, kwargs), ...]) or (model, function that calls the model it is given)"


@dataclass(frozen=True)
class Example:
    """A model and how it is called.

    Attributes:
        model: the model, or a pipeline that holds one.
        calls: the calls, in order, or a function that makes them on the model (or pipeline) that it is given.
    """

    model: Any
    calls: Sequence[Call] | Callable[[Any], object]

    @staticmethod
    def of(made: Any, site: str = "") -> Example:
        """The example that a factory returned, in one of `FORMS`. Raises HF-EXAMPLE for anything else."""
        if isinstance(made, tuple) and len(made) == 3 and _is_call(made[1:]):
            return Example(made[0], [made[1:]])
        if isinstance(made, tuple) and len(made) == 2 and callable(made[1]):
            return Example(*made)
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], list) and all(map(_is_call, made[1])):
            return Example(*made)
        raise HeadforceError("HF-EXAMPLE", site=site, found=_described(made), needed=FORMS)

    def copied(self) -> Example:
        """The same on copies that share the weights with the original and nothing else.

        Raises HF-EXAMPLE if a part of it cannot be copied.
        """
        shared = {id(weight): weight for m in modules_of(self.model) for weight in m.parameters(recurse=False)}
        calls = None if callable(self.calls) else self.calls
        try:
            model, copies = copy.deepcopy((getattr(self.model, "_orig_mod", self.model), calls), shared)
        except (RuntimeError, TypeError) as error:
            raise HeadforceError(
                "HF-EXAMPLE",
                found=f"a part of model or calls that cannot be copied ({error})",
                needed="one that copy.deepcopy takes; a function can make such inputs and call the model",
            ) from error
        return Example(model, self.calls if copies is None else copies)

    def run(self) -> None:
        """Makes the calls."""
        if callable(self.calls):
            self.calls(self.model)
            return
        for args, kwargs in self.calls:
            self.model(*args, **kwargs)

    def first(self, site: str = "") -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
        """The model and the arguments of the first call. Raises HF-EXAMPLE where a function makes the calls."""
        if callable(self.calls) or not self.calls:
            found = "a function that calls the model" if callable(self.calls) else "no call"
            raise HeadforceError("HF-EXAMPLE", site=site, found=found, needed="the arguments of a call")
        return self.model, *self.calls[0]


Sizes = Mapping[str, int | tuple[int, ...]]
"""Arguments of a function that makes an example, by name."""


def load_example(target: str, sizes: Sizes | None = None) -> Example:
    """The example that a target names: a function that returns one, or a class of models.

    A class will do if an adapter can make a small model of it, with random weights, and calls of it.

    Args:
        target: its function can be called without arguments. sizes: arguments for it, of those that `sizes_of` names.

    Raises HF-EXAMPLE for a name that is not there, or that gives no example.
    """
    named = _named(target)
    if isinstance(named, type) and issubclass(named, nn.Module):
        return _of_class(named, target)
    if not callable(named):
        raise HeadforceError("HF-EXAMPLE", site=target, found=_described(named), needed="a function or a class")
    try:
        made = named(**(sizes or {}))
    except HeadforceError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise HeadforceError(
            "HF-EXAMPLE",
            site=target,
            found=f"a function that raises {_raised(error)}",
            needed="one that can be called without arguments",
        ) from error
    return Example.of(made, target)


def sizes_of(target: str) -> Sizes:
    """The sizes that the function of a target lets one choose, as they are when nobody does.

    These are its arguments whose default is a whole number of at least 1, or a tuple or list of such numbers.
    """
    named = _named(target)
    if isinstance(named, type) or not callable(named):
        return {}
    defaults = {name: argument.default for name, argument in inspect.signature(named).parameters.items()}
    lists = {name: tuple(value) for name, value in defaults.items() if isinstance(value, tuple | list) and value}
    return {
        **{name: value for name, value in defaults.items() if _is_size(value)},
        **{name: values for name, values in lists.items() if all(map(_is_size, values))},
    }


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _named(target: str) -> Any:
    place, _, name = target.rpartition(":")
    find_beside_user()
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise _missing(target, "no such file")
        _find_beside(Path(place).resolve().parent)
    try:
        names = _run(Path(place).resolve()) if place.endswith(".py") else importlib.import_module(place or target)
    except Exception as error:  # whatever the user's own code raises
        found = f"{type(error).__name__}: {error}" if isinstance(error, ImportError) else _raised(error)
        raise _missing(target, found) from error
    try:
        return attrgetter(name)(names)
    except AttributeError as error:
        raise _missing(target, f"nothing of the name {name!r}") from error


_MADE: set[str] = set()
"""Names of modules that `_run` made."""


def _run(file: Path) -> ModuleType:
    """The module in a file, run anew. It can be imported by its name, as Dynamo does for what a function refers to."""
    name = file.stem
    if name in sys.modules and name not in _MADE:
        name = f"headforce_target_{name}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise
    _MADE.add(name)
    return module


def find_beside_user() -> None:
    """Makes the packages in the current folder importable, as they are for `python`."""
    _find_beside(Path.cwd())


def _find_beside(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _raised(error: Exception) -> str:
    """What was raised, and the line that did."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _missing(target: str, found: str) -> HeadforceError:
    return HeadforceError("HF-EXAMPLE", site=target, found=found, needed="package.module:NAME or FILE.py:NAME")


def _of_class(kind: type[nn.Module], target: str) -> Example:
    for adapter in adapters():
        made = adapter.example(kind)
        if made is not None:
            return Example.of(made, target)
    raise HeadforceError(
        "HF-EXAMPLE",
        site=target,
        found=f"the class {kind.__qualname__}, of which no adapter can make a model and its inputs",
        needed=f"a function that returns {FORMS}",
    )


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], list | tuple)
        and isinstance(value[1], Mapping)
    )


def _described(value: Any) -> str:
    parts = f" of {', '.join(type(part).__name__ for part in value)}" if isinstance(value, tuple) else ""
    return f"a {type(value).__name__}{parts}"
