"""One of K and V whose past lies in a buffer that the pass writes: what is rolled, written and read, and by whom.

The buffer is the cache itself, a graph input, or a copy of it that takes the writes first (`recognize/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import sympy
from torch.fx import Node

from .axes import single
from .cache_uses import Uses, Write, uses
from .graph_view import GraphView
from .history import Trace, landing, plain_layout
from .normal_form import Cursor
from .ops import argument, op_name, sequence_argument
from .recognize.base import AttentionCall, CacheMatch, Refused
from .site import CacheForm, ReadRule, Roll, Rows
from .torch_private import MAX_CLASSES


@dataclass(frozen=True)
class Reading:
    """The way from an operand of attention back to a buffer.

    Attributes:
        end: where views and casts of the operand end: at the buffer, or at the `cat` that joins its parts.
        parts: each part's way back to the buffer; the operand's own where nothing is joined.
    """

    end: Trace
    parts: tuple[Trace, ...]

    @property
    def passed(self) -> tuple[Node, ...]:
        """Every node on the way."""
        joined = (self.end.node, *self.end.cursor.passed) if len(self.parts) > 1 else ()
        return tuple(dict.fromkeys((*joined, *(n for part in self.parts for n in part.cursor.passed))))

    @property
    def starts(self) -> tuple[Node, ...]:
        """The nodes next to the buffer."""
        return tuple(part.cursor.passed[-1] for part in self.parts if part.cursor.passed)


def reading(view: GraphView, operand: Cursor, buffer: Node | None = None, *, factors: bool = False) -> Reading:
    """The way back from an operand of attention, to the graph input at its end or to `buffer` if it passes that."""
    end = landing(view, operand, factors=factors, until=buffer)
    pieces, dim = sequence_argument(end.node), argument(end.node, 1, "dim", 0)
    if op_name(end.node) != "cat" or len(pieces) < 2 or not isinstance(dim, int) or end.spans:
        return Reading(end, (end,))
    axes = end.cursor.axes
    dim %= len(axes)
    atom = single(axes[dim], "seq")
    if atom is None or atom.stride != 1 or any(view.shape(piece) is None for piece in pieces):
        return Reading(end, (end,))
    found = []
    for piece in pieces:
        size = view.shape(piece)[dim]
        if size == 0:
            continue
        named = (*axes[:dim], () if size == 1 else (atom._replace(size=size),), *axes[dim + 1 :])
        found.append(landing(view, Cursor(piece, named), until=buffer))
    return Reading(end, tuple(found))


class Side(Protocol):
    """What `join` has to know of one of K and V; see `Buffered`."""

    seen: Reading
    layout: tuple[str, ...]
    capacity: sympy.Expr
    segments: tuple[Rows, ...]
    append: Write
    roll: Roll | None
    rolls: tuple[Write, ...]


class Buffered:
    """What one of K and V shows. Raises `Refused` for what is of this form but not safe to rewrite.

    Attributes:
        buffer: the tensor that is written and read. layout: what each of its dims is. seen: the way to it.
        used: everything that touches it. segments: the rows read, in order. append, roll: the writes.
    """

    def __init__(self, view: GraphView, call: AttentionCall, start: Cursor, seen: Reading) -> None:
        self.seen, self.start = seen, start
        self.buffer, last = seen.parts[0].node, seen.parts[-1]
        shape, layout = view.shape(self.buffer), seen.parts[0].cursor.layout
        plain = all(part.cursor.layout == layout and not set(part.spans) - {"seq"} for part in seen.parts)
        if layout is None or not plain or not all(_whole(view, part, shape) for part in seen.parts):
            raise Refused(
                "HF-CACHE-FORM",
                f"{self.buffer.name} read as {last.cursor.axes}",
                "a cache [B, C, H, D] or [B, H, C, D], sliced along its rows only",
            )
        joined = len(seen.parts) > 1
        if not seen.end.cursor.one_cast(view) or (joined and any(part.cursor.casts for part in seen.parts)):
            raise Refused("HF-CACHE-FORM", f"{self.buffer.name} rounded on the way to attention", "at most one cast")
        self.layout: tuple[str, ...] = layout
        self.capacity = shape[layout.index("seq")]
        self.used = uses(view, self.buffer, layout)
        self.append, self.roll, rolled = writes_of(view, self.buffer, self.used)
        self.segments, short = self._segments(view)
        roll_write, moved = (None, None) if rolled is None else rolled
        self.rolls = () if roll_write is None else (roll_write,)
        self._check_order(view, call)
        self._check_escape(view, call, moved)
        self._check_rows(view, short)

    def _segments(self, view: GraphView) -> tuple[tuple[Rows, ...], bool]:
        """The rows of each part, and whether one is left out: the last has none as long as the sink is not full.

        Parts that meet are one where the new rows begin in front of the last: those of a pass that fills the sink too.
        """
        rows = [part.rows("seq", view) or Rows(sympy.S.Zero, self.capacity) for part in self.seen.parts]
        short = False
        while len(rows) > 1 and not view.ensure(sympy.Le(rows[-1].start, self.append.rows.start)):
            last = rows.pop()
            if view.ensure(sympy.Eq(last.start, last.stop)):
                short = True
            elif view.ensure(sympy.Eq(rows[-1].stop, last.start)):
                rows[-1] = Rows(rows[-1].start, last.stop)
            else:
                rows.append(last)
                break
        return tuple(rows), short

    def _check_order(self, view: GraphView, call: AttentionCall) -> None:
        place = view.order
        first_read = min((place[n] for n in self.seen.passed if n is not self.buffer), default=place[call.node])
        last_write = max(place[w.node] for w in self.used.writes)
        late_roll = any(place[roll.node] > place[self.append.node] for roll in self.rolls)
        if last_write > first_read or late_roll:
            raise Refused(
                "HF-CACHE-ORDER",
                f"{self.buffer.name} written after attention's slice or copy of it was taken",
                "roll, append, then read",
            )

    def _check_escape(self, view: GraphView, call: AttentionCall, rolled: Trace | None) -> None:
        """Nothing but this attention call may see the buffer, or what is between the buffer and the call."""
        enters = call.k_user if self.start is call.k else call.v_user
        region = view.region(self.seen.starts, enters)
        moved = set(rolled.cursor.passed if rolled else ())
        other = [n for n in self.used.consumers if n not in region | moved | {enters}]
        other += [n for node in region for n in view.users(node) if n not in region and n is not enters]
        other += [
            n
            for node in moved - self.used.aliases
            for n in view.users(node)
            if n not in moved and op_name(n) not in ("setitem", "copy_")
        ]
        if other or sum(n in region or n is self.buffer for n in enters.all_input_nodes) != 1:
            reader = other[0] if other else enters
            raise Refused(
                "HF-ESCAPE",
                f"{self.buffer.name} also read by {reader.format_node() or reader.name}",
                "a cache that only this attention call reads",
            )

    def _check_rows(self, view: GraphView, short: bool) -> None:
        facts, zero, append, name = view.facts, sympy.S.Zero, self.append.rows, self.buffer.name
        last = self.segments[-1]
        ordered = all(view.ensure(sympy.Le(a.stop, b.start)) for a, b in pairwise(self.segments))
        # A sink that is not full ends with the new rows in this call and not in the next: that takes a guard.
        full = view.ensure(sympy.Eq(last.stop, append.stop)) if short else facts.equal(last.stop, append.stop)
        if not ordered or not full:
            raise Refused(
                "HF-CACHE-RANGE",
                f"{name} read as rows {', '.join(map(rows_text, self.segments))} but written to row {append.stop}",
                "parts in order, the last one ending where the append ends",
            )
        if not (
            facts.le(zero, self.segments[0].start)
            and view.ensure(sympy.Le(last.start, append.start))
            and facts.le(append.start, append.stop)
        ):
            raise Refused(
                "HF-CACHE-RANGE",
                f"{name} read from row {last.start} but written from row {append.start}",
                "a read that holds all new rows",
            )


def _whole(view: GraphView, seen: Trace, shape: tuple[sympy.Expr, ...]) -> bool:
    """Whether every dim is one whole axis; heads may be repeated for GQA (a stride on the head axis)."""
    axes = tuple(
        tuple(a._replace(stride=sympy.S.One) if a.label == "head" else a for a in dim) for dim in seen.cursor.axes
    )
    return plain_layout(axes, shape, view)


def writes_of(view: GraphView, buffer: Node, used: Uses) -> tuple[Write, Roll | None, tuple[Write, Trace] | None]:
    """The append, the roll, and the write that rolls with the way of its rows."""
    if used.unknown:
        raise Refused(
            "HF-CACHE-FORM",
            f"{buffer.name} changed by {used.unknown[0].format_node()}",
            "writes of a range of rows, cache[:, a:b] = k, whose a and b come of sums and differences",
        )
    rolls, appends = [], []
    for write in used.writes:
        source = landing(view, write.value, until=buffer)
        (rolls if source.node is buffer else appends).append((write, source))
    if len(appends) != 1 or len(rolls) > 1:
        raise Refused(
            "HF-CACHE-FORM",
            f"{buffer.name} written {len(appends)} times and rolled {len(rolls)} times in one pass",
            "one append, and at most one roll before it",
        )
    append = appends[0][0]
    return append, _roll(view, *rolls[0], append) if rolls else None, rolls[0] if rolls else None


def _roll(view: GraphView, write: Write, source: Trace, append: Write) -> Roll:
    name = source.node.name
    if not any(op_name(node) == "clone" for node in source.cursor.passed):
        raise Refused(
            "HF-ROLL", f"rows of {name} moved onto themselves without a copy", "cache[:, a:b] = cache[:, c:d].clone()"
        )
    rows = source.spans.get("seq")
    if (
        rows is None
        or set(source.spans) != {"seq"}
        or source.cursor.casts
        or source.cursor.layout != write.value.layout
    ):
        raise Refused(
            "HF-ROLL", f"a roll of {name} that is not a move of rows", "a move of a range of rows towards the front"
        )
    roll, facts = Roll(rows, write.rows), view.facts
    if not facts.le(roll.target.start, rows.start):
        raise Refused(
            "HF-ROLL",
            f"rows {rows_text(rows)} moved to {rows_text(write.rows)}, not towards the front",
            "a move of the newer rows towards the front",
        )
    if not view.ensure(sympy.Le(append.rows.start, roll.target.stop)):
        raise Refused(
            "HF-ROLL",
            f"rows moved to {rows_text(write.rows)} and new rows at {rows_text(append.rows)}",
            "new rows that leave no gap behind the moved ones",
        )
    return roll


def same_rows(view: GraphView, pairs: Sequence[tuple[Rows, Rows]]) -> tuple[Rows, Rows] | None:
    """The first pair of which it is not proved that both are the same rows."""
    facts = view.facts
    return next((p for p in pairs if not all(facts.equal(a, b) for a, b in zip(*p, strict=True))), None)


def join(view: GraphView, call: AttentionCall, k: Side, v: Side, inputs: Sequence[Node]) -> CacheMatch:
    """K and V as one form; HF-KV-RANGE where they differ. `inputs`: the two graph inputs that are the cache."""
    if (k.roll is None) != (v.roll is None):
        raise Refused("HF-KV-RANGE", "a roll of only one of K and V", "the same rows of K and V")
    if len(k.segments) != len(v.segments):
        raise Refused("HF-KV-RANGE", f"K rows {k.segments} but V rows {v.segments}", "the same rows of K and V")
    pairs = [*zip(k.segments, v.segments, strict=True), (k.append.rows, v.append.rows)]
    if k.roll and v.roll:
        pairs += [(k.roll.source, v.roll.source), (k.roll.target, v.roll.target)]
    other = same_rows(view, pairs)
    if other is not None:
        a, b = map(rows_text, other)
        raise Refused("HF-KV-RANGE", f"K rows {a} but V rows {b}", "the same rows of K and V")
    if not view.ensure(sympy.Eq(k.capacity, v.capacity)) or k.layout != v.layout:
        raise Refused("HF-KV-RANGE", f"caches of {k.capacity} and {v.capacity} rows", "caches of one shape for K and V")
    k_input, v_input = inputs
    form = CacheForm(
        kind="append",
        k_input=k_input,
        v_input=v_input,
        k_index=view.input_index[k_input],
        v_index=view.input_index[v_input],
        layout=k.layout,
        dtype=view.dtype(k_input),
        append=k.append.rows,
        read=Rows(k.segments[0].start, k.segments[-1].stop),
        capacity=k.capacity,
        roll=k.roll,
        rule=read_rule(view, k.segments, k.capacity, k.roll),
        segments=k.segments,
        write_nodes=tuple(s.append.node for s in (k, v)),
        roll_nodes=tuple(write.node for s in (k, v) for write in s.rolls),
        read_dtype=view.dtype(call.k.node),
    )
    return CacheMatch(form, k.append.value, v.append.value, k.seen.end.cursor.factor)


def read_rule(view: GraphView, segments: Sequence[Rows], capacity: sympy.Expr, roll: Roll | None) -> ReadRule:
    """The model's own rule in rows: what the parts read and the roll say about sink and window."""
    first, last = segments[0], segments[-1]
    if len(segments) > 1:
        window = sympy.expand(last.stop - last.start)
        return ReadRule(first.stop if len(segments) == 2 and first.start == 0 else None, window)
    span = None
    if last.start != 0:
        starts = [a for a in last.start.args if a != 0] if isinstance(last.start, MAX_CLASSES) else [last.start]
        span = sympy.expand(last.stop - starts[0]) if len(starts) == 1 else None
    if roll is None:
        return ReadRule(None, span)
    if span is None or view.facts.le(capacity, span):
        return ReadRule(roll.sink, sympy.expand(capacity - roll.sink))
    if not view.facts.le(span, capacity):
        span = sympy.Min(span, capacity)
    hidden = capacity - span  # rows at the front that a shorter window does not see
    sink = sympy.S.Zero if view.facts.le(roll.sink, hidden) else sympy.Max(sympy.S.Zero, roll.sink - hidden)
    return ReadRule(sink, sympy.expand(span - sink))


def rows_text(rows: Rows) -> str:
    """Rows as an interval."""
    return f"[{rows.start}, {rows.stop})"
