"""Where Dynamo ends a graph, why, and what can be done about it."""

from __future__ import annotations

import contextlib
import linecache
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .places import own_line
from .torch_private import graph_break_messages

_LEAD = re.compile(r"^(Encountered graph break when attempting to trace|Failed to handle graph break)[^\n]*\n+")
_EXPLANATION = re.compile(r"Explanation: (.+?)(?=\n\s*Hint:|\n\n|$)", re.DOTALL)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LATER = "*** While handling this graph break, another graph break occurred: ***"


@dataclass(frozen=True)
class Cause:
    """A kind of graph break.

    Attributes:
        name: in the words of the code that breaks. remedy: what to change in a model of which no adapter knows how.
        said: a pattern of the first lines of torch's reason. line: a pattern of the line of source.
    """

    name: str
    remedy: str
    said: str
    line: str = ""


CAUSES = (
    Cause(
        ".tolist()",
        "Pass the numbers as Python ints beside the tensor, or read them off its shape.",
        r"^Tensor\.tolist|_local_scalar_dense",
        r"\.tolist\(",
    ),
    Cause(
        ".item()",
        "Keep the number as a Python int from where it is made, or compute with the tensor.",
        r"^Unsupported Tensor\.item|_local_scalar_dense",
    ),
    Cause(
        "data-dependent branch",
        "Decide by a Python value that the caller passes, or compute both sides and use torch.where.",
        r"^Data-dependent",
    ),
    Cause(
        "data-dependent shape",
        "Use an operator whose result has a shape that is known before: a mask, topk with a fixed number.",
        r"^Dynamic shape operator|^Dynamic slicing",
    ),
    Cause(
        "@torch.compiler.disable",
        "Take the decorator off; if there is a reason for it, remove that inside the function.",
        r"torch\.compiler\.disable",
    ),
    Cause(
        "print",
        "Take it out, or name print in torch._dynamo.config.reorderable_logging_functions.",
        r"builtin operator `print`|^attempted to reorder a debugging",
    ),
    Cause(
        "logging",
        "Log outside the compiled model, or name the method in torch._dynamo.config.ignore_logging_functions.",
        r"^logging\.Logger",
    ),
    Cause("graph_break()", "Take the call out.", r"^Call to `torch\._dynamo\.(graph_break|skip_frame)"),
    Cause(
        "function that is not traced",
        "Call it outside the compiled model, or register it as an operator with torch.library.custom_op.",
        r"marked as skipped|not implemented in python|builtin operator",
    ),
    Cause(
        "unsupported operator",
        "Give the operator a fake implementation with torch.library.register_fake, or use another one.",
        r"fake tensor|no meta kernel|^unsupported HigherOrderOperator|Encountered non-PT2-compliant",
    ),
)
"""The first that fits counts. A break of no kind here has the name that torch gives it."""

OTHER = "Write this line in a way that Dynamo traces; torch's reason says what it met."


@dataclass(frozen=True)
class Break:
    """A place at which Dynamo ends a graph.

    Attributes:
        where: file:line of the model's own code. source: the line.
        cause: the name of a `Cause`, or what torch calls it. reason: torch's explanation. remedy: what to change.
        uncompiled: True if the whole function then runs uncompiled, as for a break inside a loop.
        times: how often Dynamo met it; a graph that is compiled again meets it again.
    """

    where: str
    source: str
    cause: str
    reason: str
    remedy: str
    uncompiled: bool = False
    times: int = 1

    def __str__(self) -> str:
        return f"{self.cause} at {self.where}" + (f": {self.source}" if self.source else "")


@contextlib.contextmanager
def watched_breaks() -> Iterator[list[Break]]:
    """The graph breaks of what is compiled inside; the list is filled when the context ends."""
    breaks: list[Break] = []
    with graph_break_messages() as said:
        try:
            yield breaks
        finally:
            breaks += _read(said)


def break_of(error: BaseException) -> Break:
    """An error that came while a model was traced, as a break."""
    text = str(error) or type(error).__name__
    where = own_line(text) or own_line("".join(traceback.format_tb(error.__traceback__)))
    return replace(_break(where, text), uncompiled=True)


def _read(messages: list[str]) -> list[Break]:
    """The breaks in Dynamo's messages, each place and cause once, in the order in which they came."""
    own: dict[str, str] = {}  # what Dynamo names, such as a line of torch -> the model's own line
    found: dict[tuple[str, str], Break] = {}
    times: Counter[tuple[str, str]] = Counter()
    lost: set[tuple[str, str]] = set()
    for message in messages:
        head, _, rest = message.partition("\nGraph Break Reason: ")
        reason, _, frames = rest.partition("User code traceback:")
        place = head.rpartition("in user code at ")[2]
        if frames:
            own.setdefault(place, own_line(frames))
        seen = _break(own.get(place) or place, _LEAD.sub("", reason).split(_LATER)[0])
        key = (seen.where, seen.cause)
        found.setdefault(key, seen)
        times[key] += 1
        if reason.startswith("Failed to handle"):
            lost.add(key)
    return [replace(b, uncompiled=key in lost, times=times[key]) for key, b in found.items()]


def _break(where: str, text: str) -> Break:
    """A break at a place, from torch's own words about it."""
    where, source = _line_at(where)
    kind, _, more = text.partition("\n")
    explained = _EXPLANATION.search(more)
    reason = _ADDRESS.sub("", " ".join((explained[1] if explained else kind).split()))
    for cause in CAUSES:
        if re.search(cause.said, f"{kind} {reason}") and re.search(cause.line, source):
            return Break(where, source, cause.name, reason, cause.remedy)
    return Break(where, source, kind, reason, OTHER)


def _line_at(where: str) -> tuple[str, str]:
    """A line of source and its place; the one in front of it where Dynamo names an empty line behind a statement."""
    file, _, number = where.rpartition(":")
    for line in range(int(number), 0, -1) if number.isdigit() else ():
        if source := linecache.getline(file, line).strip():
            return f"{file}:{line}", source
    return where, ""
