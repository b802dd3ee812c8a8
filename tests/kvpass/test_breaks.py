"""Graph breaks: their place, their cause, and what to change."""

from __future__ import annotations

import inspect
import logging
import time

import pytest
import torch
from torch import Tensor

from headforce.kvpass.breaks import CAUSES, OTHER, break_of, watched_breaks

LOG = logging.getLogger("headforce_breaks")


def item(x: Tensor) -> Tensor:
    return x * x.sum().item()  # here


def number(x: Tensor) -> Tensor:
    return x * int(x.sum())  # here


def tolist(x: Tensor) -> Tensor:
    return x * x.long().sum(0).tolist()[0]  # here


def branch(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        x = x + 1
    return x * 2


def indexed(x: Tensor) -> Tensor:
    return x[x > 0] * 2  # here


@torch.compiler.disable
def opaque(x: Tensor) -> Tensor:
    return x + 1


def disabled(x: Tensor) -> Tensor:
    return opaque(x) * 2  # here


def printing(x: Tensor) -> Tensor:
    x = x + 1
    print("seen")  # here
    return x * 2


def asked(x: Tensor) -> Tensor:
    x = x + 1
    torch._dynamo.graph_break()  # here
    return x * 2


def timed(x: Tensor) -> Tensor:
    x = x + 1
    return x * time.perf_counter()  # here


def looped(x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + x.sum().item()  # here
    return x


def line_of(function: object) -> str:
    lines, first = inspect.getsourcelines(function)
    (number,) = [i for i, line in enumerate(lines) if line.rstrip().endswith("# here")]
    return f"{__file__}:{first + number}"


def breaks_of(function: object, times: int = 1) -> list:
    torch._dynamo.reset()
    with watched_breaks() as breaks:
        for rows in range(3, 3 + times):
            torch.compile(function, backend="eager", dynamic=False)(torch.ones(rows, 4))
    return breaks


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (item, ".item()"),
        (number, ".item()"),
        (tolist, ".tolist()"),
        (branch, "data-dependent branch"),
        (indexed, "data-dependent shape"),
        (disabled, "@torch.compiler.disable"),
        (printing, "print"),
        (asked, "graph_break()"),
        (timed, "function that is not traced"),
    ],
)
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_a_cause_and_its_place(function: object, cause: str) -> None:
    (found,) = breaks_of(function)
    assert (found.cause, found.where, found.uncompiled, found.times) == (cause, line_of(function), False, 1)
    assert found.source.endswith("# here")
    assert found.remedy == next(known.remedy for known in CAUSES if known.name == cause)
    assert found.reason
    assert " at 0x" not in found.reason
    assert str(found) == f"{cause} at {found.where}: {found.source}"


def test_a_break_in_a_loop_leaves_the_function_uncompiled() -> None:
    (found,) = breaks_of(looped)
    assert (found.cause, found.where, found.uncompiled) == (".item()", line_of(looped), True)


def test_the_same_break_in_another_graph_is_counted() -> None:
    (found,) = breaks_of(item, times=2)
    assert found.times == 2


def test_a_break_is_seen_again_by_the_next_to_watch() -> None:
    assert breaks_of(item) == breaks_of(item)


def test_logging_breaks_at_the_line_of_the_model() -> None:
    def says(x: Tensor) -> Tensor:
        x = x + 1
        LOG.warning("seen")  # here
        return x * 2

    for _ in range(2):  # Dynamo shows the way to a place in Python's own files once, unless it is told to forget
        found = breaks_of(says)
        assert {f.where for f in found} == {line_of(says)}
        assert "logging" in {f.cause for f in found}


def test_a_kind_without_a_name_here_keeps_that_of_torch() -> None:
    def opens(x: Tensor) -> Tensor:
        with memoryview(b"a"):  # here
            return x + 1

    found = breaks_of(opens)
    assert found[-1].where == line_of(opens)
    assert found[-1].cause == "Unsupported context manager"
    assert found[-1].remedy == OTHER


@torch.library.custom_op("headforce_breaks::plain", mutates_args=())
def plain(x: Tensor) -> Tensor:
    """An operator without a fake implementation."""
    return x.clone()


def calls(x: Tensor) -> Tensor:
    return plain(x) * 2  # here


def test_an_operator_that_cannot_be_traced_is_an_error_with_a_place() -> None:
    with pytest.raises(Exception, match="fake") as error:
        breaks_of(calls)
    found = break_of(error.value)
    assert (found.cause, found.where, found.uncompiled) == ("unsupported operator", line_of(calls), True)


def test_torch_talks_as_before() -> None:
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch._dynamo.symbolic_convert.__graph_breaks")]
    before = [(log.level, log.propagate, list(log.handlers)) for log in loggers]
    breaks_of(item)
    assert [(log.level, log.propagate, list(log.handlers)) for log in loggers] == before
