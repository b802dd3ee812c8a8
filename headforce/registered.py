"""Everything that is registered, by headforce itself and by installed packages, and what each of it lacks.

A registered thing owes a docstring, a reference that it can be compared with, and, where it has to recognise something,
counter-examples: what looks like it and is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import headforce

PACKAGE = Path(headforce.__file__).parent


@dataclass(frozen=True)
class Thing:
    """One registered thing.

    Attributes:
        kind, name: "operator" and "window", say. where: its file and line; files of headforce from its folder on.
        line: the first line of its docstring. lacks: what it owes and does not have.
    """

    kind: str
    name: str
    where: str
    line: str
    lacks: tuple[str, ...] = ()

    @staticmethod
    def of(kind: str, name: str, thing: Any, *lacks: str) -> Thing:
        """A function or a class that was registered."""
        text = own_docstring(thing)
        missing = (*(() if text else ("a docstring",)), *lacks)
        return Thing(kind, name, _where(thing), text.split("\n", 1)[0], missing)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "lacks": list(self.lacks)}


def own_docstring(thing: Any) -> str:
    """The docstring that somebody wrote for a function or class; empty if it has none of its own."""
    text = (thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""
    generated = inspect.isclass(thing) and text.startswith(f"{thing.__name__}(")  # what dataclass writes
    return "" if generated else inspect.cleandoc(text)


def registered() -> list[Thing]:
    """All of it, kind by kind, those of installed packages included."""
    return [*_operators(), *_scores(), *_makers(), *_targets(), *_recognizers(), *_adapters(), *_presets(), *_methods()]


def listing(things: Sequence[Thing]) -> str:
    """A line for each: name, place, and what it says of itself, under the name of its kind."""
    lines: list[str] = []
    wide = max((len(thing.name) for thing in things), default=0)
    for kind, of_kind in groupby(things, key=lambda thing: thing.kind):
        lines += ["", f"{kind}s"] if lines else [f"{kind}s"]
        lines += [f"  {thing.name:<{wide}}  {thing.where}\n  {'':<{wide}}  {thing.line}" for thing in of_kind]
    return "\n".join(lines)


def _operators() -> Iterator[Thing]:
    from .lowering.state.making import load_makers
    from .policy import load_ops
    from .policy.protocol import lacks

    makers = load_makers()
    for name, kind in load_ops().items():
        lacking = [f"{method}()" for method in lacks(kind)]
        if kind.paged and name not in makers:
            lacking.append("a maker")
        yield Thing.of("operator", name, kind, *lacking)


def _scores() -> Iterator[Thing]:
    from .lowering.state.score import load_scores

    for name, score in load_scores().items():
        lacking = [] if score.best in ("lowest", "highest") else ["a best that is 'lowest' or 'highest'"]
        yield Thing.of("score", name, score.function, *lacking)


def _makers() -> Iterator[Thing]:
    from .lowering.state.making import load_makers
    from .policy import load_ops
    from .policy.protocol import lacks

    kinds = load_ops()
    for name, maker in load_makers().items():
        reference = name in kinds and kinds[name].paged and "materialize_part" not in lacks(kinds[name])
        yield Thing.of(
            "maker", name, maker, *([] if reference else ["a reference: materialize_part() of its operator"])
        )


def _targets() -> Iterator[Thing]:
    from .kernels.reference import ragged_attention
    from .lowering.targets import load_targets

    wanted = list(inspect.signature(ragged_attention).parameters)
    for name, target in load_targets().items():
        same = list(inspect.signature(target).parameters) == wanted
        lacking = [] if same else ["the arguments of its reference, kernels.reference.ragged_attention"]
        yield Thing.of("target", name, target, *lacking)


def _recognizers() -> Iterator[Thing]:
    from .kvpass.recognize.base import KINDS, recognizers

    for kind in KINDS:
        for function in recognizers(kind):
            # A file of one form says in front what it accepts, and what looks like it and is refused.
            module = inspect.getmodule(function)
            text = f"{module.__doc__ or ''}\n{function.__doc__ or ''}"
            told = re.search(r"counter-examples?\b", text, re.IGNORECASE)
            yield Thing.of(
                "recogniser", f"{kind}: {function.__name__}", function, *([] if told else ["a counter-example"])
            )


def _adapters() -> Iterator[Thing]:
    from .kvpass.capture.adapter import adapters

    for adapter in reversed(adapters()):
        yield Thing.of("adapter", adapter.name, type(adapter))


def _presets() -> Iterator[Thing]:
    from .presets.registry import load_presets

    for name, preset in load_presets().items():
        yield Thing.of("preset", name, preset)


def _methods() -> Iterator[Thing]:
    from .profile.methods.registry import load_methods

    for name, method in load_methods().items():
        yield Thing.of("profile method", name, method.classify)


def _where(thing: Any) -> str:
    thing = inspect.unwrap(thing) if inspect.isfunction(thing) else thing
    path = Path(inspect.getsourcefile(thing) or "")
    shown = Path("headforce") / path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path
    return f"{shown}:{inspect.getsourcelines(thing)[1]}"
