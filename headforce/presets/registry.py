"""The registry of presets. A preset is one function in one file of this folder, or of a plugin."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..errors import HeadforceError, nearest
from ..policy import Policy

ENTRY_POINTS = "headforce.presets"

_PRESETS: dict[str, Callable[..., Policy]] = {}
_F = TypeVar("_F", bound=Callable[..., Policy])


def preset(name: str) -> Callable[[_F], _F]:
    """Decorator: registers a function that makes a policy, under the name that files and options use."""

    def register(function: _F) -> _F:
        _PRESETS[name] = function
        return function

    return register


def load_presets() -> dict[str, Callable[..., Policy]]:
    """All presets by name, those of installed plugins included."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_PRESETS.items()))


def find_preset(name: str) -> Callable[..., Policy]:
    """The preset called `name`; HF-PRESET with the nearest valid name if there is none."""
    known = load_presets()
    if name not in known:
        raise HeadforceError(
            "HF-PRESET", found=f"preset {name!r}{nearest(name, known)}", needed="one of " + ", ".join(known)
        )
    return known[name]


def make_preset(name: str, **arguments: Any) -> Policy:
    """The policy of a preset; HF-PRESET names an argument that does not exist or is missing."""
    function = find_preset(name)
    parameters = inspect.signature(function).parameters
    wrong = [key for key in arguments if key not in parameters]
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if wrong or missing:
        found = f"argument {wrong[0]!r}{nearest(wrong[0], parameters)}" if wrong else f"no {missing[0]}"
        takes = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values()]
        raise HeadforceError("HF-PRESET", site=name, found=found, needed=", ".join(takes))
    return function(**arguments)
