"""The registry of methods. A method is one function of one pass, in one file of this folder, or of a plugin."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import HeadforceError, nearest
from ...policy import Chunk
from ...presets import Labels
from ..measured import Pass

ENTRY_POINTS = "headforce.profile_methods"

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "a number, or null,",
}
"""What a constant has to be, by the type of its default. None stands for a number that is worked out."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a method says of one pass.

    Attributes:
        labels: the class of every head.
        score: [layers, heads], the number by which the method ranks heads; the higher, the more of its first class.
    """

    labels: Labels
    score: npt.NDArray[np.floating[Any]]

    @staticmethod
    def of(names: npt.ArrayLike, score: npt.NDArray[np.floating[Any]]) -> Found:
        """From the names of the classes, [layers, heads]."""
        return Found(Labels(tuple(tuple(map(str, layer)) for layer in np.asarray(names))), score)


@dataclass(frozen=True)
class Method:
    """A way to classify heads.

    Attributes:
        name: what `--method` calls it. classes: that it may give. preset: the published policy that takes its labels.
        classify: the function, of a `Pass` and of constants by name.
        form: a label file as the published system writes it: the text of a table, or plain data for JSON.
    """

    name: str
    classes: tuple[str, ...]
    preset: str
    classify: Callable[..., Found]
    form: Callable[[Labels], Any]

    def __call__(self, passed: Pass, **constants: Any) -> Found:
        """The classes of heads in one pass. Raises HF-PROFILE-METHOD for a constant that it does not have."""
        self.check(constants)
        return self.classify(passed, **constants)

    def check(self, constants: Mapping[str, Any]) -> None:
        """HF-PROFILE-METHOD for a constant that the method does not have, or that is not of the kind of its default."""
        parameters = inspect.signature(self.classify).parameters
        known = list(parameters)[1:]
        for name, value in constants.items():
            if name not in known:
                raise HeadforceError(
                    "HF-PROFILE-METHOD",
                    site=self.name,
                    found=f"a constant {name!r}{nearest(name, known)}",
                    needed=", ".join(known),
                )
            default = parameters[name].default
            if not _is_like(value, default):
                needed = f"{KINDS[type(default)]} for {name}"
                raise HeadforceError("HF-PROFILE-METHOD", site=self.name, found=f"{name}={value!r}", needed=needed)

    def try_out(self, constants: Mapping[str, Any]) -> None:
        """What `check` raises, and HF-PROFILE-METHOD or HF-POLICY-VALUE for a constant that is out of range.

        For who is about to measure for long: the method judges a pass that is made up, since methods know their ranges
        themselves. What it finds in that pass means nothing.
        """
        try:
            self(_made_up(), **constants)
        except HeadforceError as error:
            if error.code in ("HF-PROFILE-METHOD", "HF-POLICY-VALUE"):
                raise


def _made_up() -> Pass:
    """A pass of two heads that attend to 21 frames alike."""
    keys = tuple(range(12, 33))
    same = np.full((1, 2, 1, len(keys)), 1 / len(keys), np.float32)
    return Pass(Chunk(10, 30, 3), 0, keys, same, same, same)


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value can stand for a default. A whole number is a number too; what has none of `KINDS` will do."""
    if type(default) not in KINDS:
        return True
    if default is None:
        return value is None or _is_like(value, 0.0)
    if isinstance(value, bool):  # a number to Python, but not to who wrote `true`
        return isinstance(default, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


_METHODS: dict[str, Method] = {}


def method(
    name: str, classes: tuple[str, ...], *, preset: str, form: Callable[[Labels], Any] = Labels.to_classes
) -> Callable[[Callable[..., Found]], Method]:
    """Decorator: registers a function `(passed, **constants) -> Found`."""

    def register(function: Callable[..., Found]) -> Method:
        _METHODS[name] = Method(name, classes, preset, function, form)
        return _METHODS[name]

    return register


def load_methods() -> dict[str, Method]:
    """All methods by name, those of installed plugins included."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_METHODS.items()))


def find_method(name: str) -> Method:
    """The method called `name`; HF-PROFILE-METHOD with the nearest name if there is none."""
    known = load_methods()
    if name not in known:
        raise HeadforceError(
            "HF-PROFILE-METHOD", found=f"method {name!r}{nearest(name, known)}", needed="one of " + ", ".join(known)
        )
    return known[name]
