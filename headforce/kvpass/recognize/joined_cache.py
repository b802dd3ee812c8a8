"""The append protocol, written behind its read (P1): attention reads the past rows of a buffer joined with the new
ones, and the pass writes those into the buffer besides.

Accepted, with the buffer `cache` and rolls as in the append protocol:

    attention(q, cat([cache[:, c:a], k], 1), ...);  cache[:, a:b] = k           # the write before or behind attention
    attention(q, cat([cache[:, :s], cache[:, c:a], k], 1), ...)                 # sink and window (P4)
    attention(q, cat([cache[:, :0], k], 1), ...);   cache[:, 0:b] = k           # the first pass, which has no past

Counter-examples: what is joined is not what is written, or is rounded when it is (HF-CACHE-FORM); the past does not end
where the write begins, or its parts are out of order (HF-CACHE-RANGE); a roll behind the read or the append
(HF-CACHE-ORDER); the cache or the joined rows are read by anything else (HF-ESCAPE).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import sympy
from torch.fx import Node

from ..buffer import Buffered, Reading, Side, join, reading, rows_text
from ..cache_uses import Write, uses
from ..graph_view import GraphView
from ..history import Trace, same_value
from ..normal_form import Cursor
from ..ops import sequence_argument
from ..site import Rows
from .append_cache import is_written
from .base import CACHE_LAYOUTS, AttentionCall, CacheMatch, Refused, recognizer


@recognizer("cache", order=15)
def joined_cache(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise a written graph input whose past rows are joined with new ones; None if K or V is of another form."""
    ends = reading(view, call.k, factors=True), reading(view, call.v)
    past = [_buffer(view, end) for end in ends]
    sides: list[Side]
    if None not in past:
        sides = [_Past(view, call, start, end) for start, end in zip((call.k, call.v), ends, strict=True)]
    else:
        found = [_first(view, start, end) for start, end in zip((call.k, call.v), ends, strict=True)]
        if None in found:
            return None
        past, sides = [first.buffer for first in found], [*found]
    if past[0] is past[1]:
        raise Refused("HF-SHARED-KV", f"K and V both read from {past[0].name}", "a cache input each for K and V")
    return join(view, call, *sides, past)


def _buffer(view: GraphView, seen: Reading) -> Node | None:
    """The written graph input whose rows stand in front of new ones."""
    *past, new = seen.parts
    buffers = {part.node for part in past}
    buffer = buffers.pop() if len(buffers) == 1 else None
    known = buffer is not None and buffer.op == "placeholder" and new.node is not buffer and is_written(view, buffer)
    return buffer if known else None


@dataclass(frozen=True)
class _First:
    """A buffer into whose first rows the pass writes what it attends to, and of which nothing else is read."""

    buffer: Node
    seen: Reading
    layout: tuple[str, ...]
    capacity: sympy.Expr
    append: Write
    roll: None = None
    rolls: tuple[Write, ...] = ()

    @property
    def segments(self) -> tuple[Rows, ...]:
        return (self.append.rows,)


def _first(view: GraphView, operand: Cursor, seen: Reading) -> _First | None:
    """The graph input that takes the new rows, which are all that is read, as its first."""
    if len(seen.parts) != 1:
        return None
    (new,) = seen.parts
    passed = {seen.end.node, *seen.end.cursor.passed, *new.cursor.passed}
    for node in view.placeholders:
        if (
            len(view.shape(node) or ()) != 4
            or view.dtype(node) != view.dtype(operand.node)
            or not is_written(view, node)
        ):
            continue
        for layout in CACHE_LAYOUTS:
            used = uses(view, node, layout)
            if len(used.writes) != 1 or used.unknown or not set(used.consumers) <= passed:
                continue
            (write,) = used.writes
            exact = view.dtype(write.value.node) == view.dtype(node)
            if exact and write.rows.start == 0 and _written(view, new, write):
                return _First(node, seen, layout, view.shape(node)[layout.index("seq")], write)
    return None


def _written(view: GraphView, new: Trace, write: Write) -> bool:
    """Whether the new rows are those that are written. Heads that attention repeats lie in the cache once."""
    axes = tuple(
        tuple(a._replace(stride=sympy.S.One) if a.label == "head" else a for a in dim) for dim in new.cursor.axes
    )
    return same_value(view, replace(new.cursor, axes=axes), write.value)


class _Past(Buffered):
    """A buffer, with the rows that are read before and as they come to be."""

    def __init__(self, view: GraphView, call: AttentionCall, start: Cursor, seen: Reading) -> None:
        *past, self._new = seen.parts
        super().__init__(view, call, start, replace(seen, parts=tuple(past)))

    def _segments(self, view: GraphView) -> tuple[tuple[Rows, ...], bool]:
        past = [part.rows("seq", view) or Rows(sympy.S.Zero, self.capacity) for part in self.seen.parts]
        if not view.ensure(sympy.Eq(past[-1].stop, self.append.rows.start)):
            raise Refused(
                "HF-CACHE-RANGE",
                f"{self.buffer.name} read as rows {', '.join(map(rows_text, past))} in front of new ones, "
                f"which are written from row {self.append.rows.start}",
                "a past that ends where the new rows are written",
            )
        return (*past[:-1], Rows(past[-1].start, self.append.rows.stop)), False

    def _check_order(self, view: GraphView, call: AttentionCall) -> None:
        """The past is not among the rows that the append writes, so that may come at any time."""
        place = view.order
        reads = [place[node] for node in self.seen.passed if node is not self.buffer]
        latest = min(place[self.append.node], *reads)
        if any(place[roll.node] > latest for roll in self.rolls):
            raise Refused(
                "HF-CACHE-ORDER",
                f"{self.buffer.name} rolled behind a read or a write of this pass",
                "roll, then read and append",
            )

    def _check_rows(self, view: GraphView, short: bool) -> None:
        name, append = self.buffer.name, self.append
        joined = sequence_argument(self.seen.end.node)
        dtypes = {view.dtype(node) for node in (self.buffer, append.value.node, *joined)}
        if len(dtypes) > 1 or not _written(view, self._new, append):
            raise Refused(
                "HF-CACHE-FORM",
                f"rows of {name} joined with others than those that are written into it",
                "the same new rows for both, in the dtype of the cache",
            )
        ordered = all(view.ensure(sympy.Le(a.stop, b.start)) for a, b in pairwise(self.segments))
        if not ordered or not view.facts.le(sympy.S.Zero, self.segments[0].start):
            raise Refused(
                "HF-CACHE-RANGE",
                f"{name} read as rows {', '.join(map(rows_text, self.segments))}",
                "parts in order, the last one ending where the append ends",
            )
