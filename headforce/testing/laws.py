"""How laws are run: over drawn examples, the same ones every time, and with a name when one is broken."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ..errors import HeadforceError

EXAMPLES = 25
"""How many examples of every law are drawn."""


def examine(law: Callable[..., None], examples: int, *, shrink: bool = True, **drawn: st.SearchStrategy[Any]) -> None:
    """Runs a law with drawn arguments; with `shrink`, the smallest ones that break it are in what is raised.

    Laws that run streams are slow, and the first arguments that break them say enough.
    """
    chosen = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    chosen(given(**drawn)(law))()


@contextmanager
def about(what: str) -> Iterator[None]:
    """A broken law inside says what it is about."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from error


def code_of(call: Callable[[], Any]) -> str:
    """The code with which a call is refused; empty if it is not."""
    try:
        call()
    except HeadforceError as error:
        return error.code
    return ""


def says(law: Callable[..., Any]) -> str:
    """A law in words: the first line of its docstring."""
    return (inspect.getdoc(law) or law.__name__).splitlines()[0].rstrip(".")


def run_examples(thing: Any) -> None:
    """The examples in the docstring of a function or a class, its methods' among them."""
    module = importlib.import_module(thing.__module__)
    for test in doctest.DocTestFinder().find(thing, thing.__name__, module, module.__dict__):
        output: list[str] = []
        failed = doctest.DocTestRunner(verbose=False).run(test, out=output.append).failed
        assert not failed, "".join(output)
