"""The registry of presets. A preset is one function in one file of this folder, or of a plugin."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

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
        raise HeadforceError("HF-PRESET", site=name, found=found, needed=_takes(function))
    hints = _hints(function)
    for key, value in arguments.items():
        if key in hints and not _fits(value, hints[key]):
            raise HeadforceError("HF-PRESET", site=name, found=f"{key}={value!r}", needed=_takes(function))
    return function(**arguments)


def need_quirks(given: Sequence[str], *known: str) -> set[str]:
    """The quirks that are asked for; HF-PRESET names one that the preset does not have.

    A quirk is a defect of published code that the preset does not have unless it is named. The preset's docstring says
    what each does.
    """
    for name in given:
        if name not in known:
            found = f"quirk {name!r}{nearest(name, known)}"
            raise HeadforceError("HF-PRESET", site="quirks", found=found, needed="any of " + ", ".join(known))
    return set(given)


def _takes(function: Callable[..., Policy]) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)


def _hints(function: Callable[..., Policy]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # a plugin's, which may be known to type checkers only
        return {}


_PLAIN: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    type(None): (type(None),),
}
"""What an argument of a plain type may be."""


def _fits(value: Any, hint: Any) -> bool:
    """Whether an argument is of its type. Files have words where numbers belong, which a rule's text would hide."""
    if get_origin(hint) is Sequence:
        items = get_args(hint)[0]
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(item, items) for item in value)
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(kind in _PLAIN for kind in kinds):
        return True
    return any(type(value) in _PLAIN[kind] for kind in kinds)
