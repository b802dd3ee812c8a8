"""The append protocol (P1): the pass writes its rows into a buffer in place and attention reads a slice that ends
with them.

Accepted, with the buffer `cache` a graph input of shape [B, C, H, D] or [B, H, C, D]:

    cache[:, a:b] = k;  attention(q, cache[:, max(0, b - w):b], ...)          # also cache[:, :b], or the whole cache
    cache[:, a:b].copy_(k);  cache.narrow(1, a, n).copy_(k)
    cache[:, s:s+n] = cache[:, s+e:s+e+n].clone();  cache[:, a:b] = k         # a roll evicts e rows after s sink rows

Counter-examples and their codes: the cache or the slice is read by anything else (HF-ESCAPE); the read does not end
where the append ends, or starts after it (HF-CACHE-RANGE); K and V differ in rows (HF-KV-RANGE); one tensor holds K
and V (HF-SHARED-KV); a read before the write, or a write after the read (HF-CACHE-ORDER); a roll without a copy, to
the right, or leaving a gap (HF-ROLL); other writes, such as an index tensor or a blend into the sink
(HF-CACHE-FORM).
"""

from __future__ import annotations

import sympy
from torch.fx import Node

from ..cache_uses import Uses, Write, uses
from ..graph_view import GraphView
from ..history import Trace, landing, plain_layout
from ..normal_form import Cursor
from ..ops import op_name
from ..site import CacheForm, ReadRule, Roll, Rows
from ..torch_private import MAX_CLASSES
from .base import AttentionCall, CacheMatch, Refused, recognizer


@recognizer("cache", order=10)
def append_cache(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise a buffer that is written in place; None if K does not come from a graph input that the graph writes."""
    k, v = landing(view, call.k, factors=True), landing(view, call.v)
    inputs = [t for t in (k, v) if t.node.op == "placeholder"]
    if not any(_written(view, t.node) for t in inputs):
        return None
    if len(inputs) < 2:
        raise Refused(
            "HF-CACHE-FORM", "one of K and V read from a cache, the other not", "both read from caches of one form"
        )
    if k.node is v.node:
        raise Refused("HF-SHARED-KV", f"K and V both read from {k.node.name}", "a cache input each for K and V")
    sides = [_side(view, call, trace_, start) for trace_, start in ((k, call.k), (v, call.v))]
    return _join(view, call, *sides)


class _Side:
    """What one of K and V shows."""

    def __init__(
        self, seen: Trace, labels: tuple[str, ...], used: Uses, read: Rows, append: Write, roll: Roll | None
    ) -> None:
        self.seen, self.labels, self.used, self.read = seen, labels, used, read
        self.append, self.roll = append, roll


def _written(view: GraphView, node: Node) -> bool:
    used = uses(view, node, ("",) * len(view.shape(node) or ()))
    return bool(used.writes or used.unknown)


def _side(view: GraphView, call: AttentionCall, seen: Trace, start: Cursor) -> _Side:
    base, shape = seen.node, view.shape(seen.node)
    labels = seen.cursor.layout
    if labels is None or set(seen.spans) - {"seq"} or not _whole(view, seen, shape):
        raise Refused(
            "HF-CACHE-FORM",
            f"{base.name} read as {seen.cursor.axes}",
            "a cache [B, C, H, D] or [B, H, C, D], sliced along its rows only",
        )
    if not seen.cursor.one_cast(view):
        raise Refused("HF-CACHE-FORM", f"{base.name} rounded on the way to attention", "at most one cast")
    read = seen.rows("seq", view) or Rows(sympy.S.Zero, shape[labels.index("seq")])
    used = uses(view, base, labels)
    if used.unknown:
        raise Refused(
            "HF-CACHE-FORM",
            f"{base.name} changed by {used.unknown[0].format_node()}",
            "writes of a range of rows: cache[:, a:b] = k",
        )
    rolls, appends = [], []
    for write in used.writes:
        source = landing(view, write.value)
        (rolls if source.node is base else appends).append((write, source))
    if len(appends) != 1 or len(rolls) > 1:
        raise Refused(
            "HF-CACHE-FORM",
            f"{base.name} written {len(appends)} times and rolled {len(rolls)} times in one pass",
            "one append, and at most one roll before it",
        )
    append = appends[0][0]
    roll = _roll(view, *rolls[0], append) if rolls else None
    _check_order(view, call, base, seen, used, rolls[0][0] if rolls else None, append)
    _check_escape(view, call, base, seen, start, used, rolls[0][1] if rolls else None)
    _check_rows(view, base, read, append.rows)
    return _Side(seen, labels, used, read, append, roll)


def _whole(view: GraphView, seen: Trace, shape: tuple[sympy.Expr, ...]) -> bool:
    """Whether every dim is one whole axis; heads may be repeated for GQA (a stride on the head axis)."""
    axes = tuple(
        tuple(a._replace(stride=sympy.S.One) if a.label == "head" else a for a in dim) for dim in seen.cursor.axes
    )
    return plain_layout(axes, shape, view)


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
            f"rows {_text(rows)} moved to {_text(write.rows)}, not towards the front",
            "a move of the newer rows towards the front",
        )
    if not view.ensure(sympy.Le(append.rows.start, roll.target.stop)):
        raise Refused(
            "HF-ROLL",
            f"rows moved to {_text(write.rows)} and new rows at {_text(append.rows)}",
            "new rows that leave no gap behind the moved ones",
        )
    return roll


def _check_order(
    view: GraphView, call: AttentionCall, base: Node, seen: Trace, used: Uses, roll: Write | None, append: Write
) -> None:
    place = view.order
    first_read = min((place[n] for n in seen.cursor.passed if n in used.aliases), default=place[call.node])
    last_write = max(place[w.node] for w in used.writes)
    if last_write > first_read or (roll is not None and place[roll.node] > place[append.node]):
        raise Refused(
            "HF-CACHE-ORDER",
            f"{base.name} written after the slice that attention reads was taken",
            "roll, append, then read",
        )


def _check_escape(
    view: GraphView, call: AttentionCall, base: Node, seen: Trace, start: Cursor, used: Uses, rolled: Trace | None
) -> None:
    """Nothing but this attention call may see the cache, or what is between the cache and the call."""
    enters = call.k_user if start is call.k else call.v_user
    region = view.region(seen.cursor.passed[-1:], enters)
    moved = set(rolled.cursor.passed if rolled else ())
    other = [n for n in used.consumers if n not in region | moved | {enters}]
    other += [n for node in region for n in node.users if n not in region and n is not enters]
    other += [
        n
        for node in moved - used.aliases
        for n in node.users
        if n not in moved and op_name(n) not in ("setitem", "copy_")
    ]
    if other or sum(n in region or n is base for n in enters.all_input_nodes) != 1:
        reader = other[0] if other else enters
        raise Refused(
            "HF-ESCAPE",
            f"{base.name} also read by {reader.format_node() or reader.name}",
            "a cache that only this attention call reads",
        )


def _check_rows(view: GraphView, base: Node, read: Rows, append: Rows) -> None:
    facts, zero = view.facts, sympy.S.Zero
    if not facts.equal(read.stop, append.stop):
        raise Refused(
            "HF-CACHE-RANGE",
            f"{base.name} read to row {read.stop} but written to row {append.stop}",
            "a read that ends where the append ends",
        )
    if not (
        facts.le(zero, read.start)
        and view.ensure(sympy.Le(read.start, append.start))
        and facts.le(append.start, append.stop)
    ):
        raise Refused(
            "HF-CACHE-RANGE",
            f"{base.name} read from row {read.start} but written from row {append.start}",
            "a read that holds all new rows",
        )


def _join(view: GraphView, call: AttentionCall, k: _Side, v: _Side) -> CacheMatch:
    pairs = [(k.read, v.read), (k.append.rows, v.append.rows)]
    if (k.roll is None) != (v.roll is None):
        raise Refused("HF-KV-RANGE", "a roll of only one of K and V", "the same rows of K and V")
    if k.roll and v.roll:
        pairs += [(k.roll.source, v.roll.source), (k.roll.target, v.roll.target)]
    for a, b in pairs:
        if not (view.facts.equal(a.start, b.start) and view.facts.equal(a.stop, b.stop)):
            raise Refused("HF-KV-RANGE", f"K rows {_text(a)} but V rows {_text(b)}", "the same rows of K and V")
    capacities = [view.shape(s.seen.node)[s.labels.index("seq")] for s in (k, v)]
    if not view.ensure(sympy.Eq(*capacities)) or k.labels != v.labels:
        raise Refused(
            "HF-KV-RANGE", f"caches of {capacities[0]} and {capacities[1]} rows", "caches of one shape for K and V"
        )
    nodes = [(s.used.writes, s) for s in (k, v)]
    appends = tuple(s.append.node for s in (k, v))
    form = CacheForm(
        kind="append",
        k_input=k.seen.node,
        v_input=v.seen.node,
        k_index=view.input_index[k.seen.node],
        v_index=view.input_index[v.seen.node],
        layout=k.labels,
        dtype=view.dtype(k.seen.node),
        append=k.append.rows,
        read=k.read,
        capacity=capacities[0],
        roll=k.roll,
        rule=read_rule(view, k.read, k.append.rows, capacities[0], k.roll),
        segments=(k.read,),
        write_nodes=appends,
        roll_nodes=tuple(w.node for writes, _ in nodes for w in writes if w.node not in appends),
        read_nodes=tuple(n for s in (k, v) for n in s.seen.cursor.passed if n in s.used.aliases),
        read_dtype=view.dtype(call.k.node),
    )
    return CacheMatch(form, k.append.value, v.append.value, k.seen.cursor.factor)


def read_rule(view: GraphView, read: Rows, append: Rows, capacity: sympy.Expr, roll: Roll | None) -> ReadRule:
    """The model's own rule in rows: what the read start and the roll say about sink and window."""
    span = None
    if read.start != 0:
        starts = [a for a in read.start.args if a != 0] if isinstance(read.start, MAX_CLASSES) else [read.start]
        span = sympy.expand(read.stop - starts[0]) if len(starts) == 1 else None
    if roll is None:
        return ReadRule(None, span)
    if span is None or view.facts.le(capacity, span):
        return ReadRule(roll.sink, sympy.expand(capacity - roll.sink))
    if not view.facts.le(span, capacity):
        span = sympy.Min(span, capacity)
    hidden = capacity - span  # rows at the front that a shorter window does not see
    sink = sympy.S.Zero if view.facts.le(roll.sink, hidden) else sympy.Max(sympy.S.Zero, roll.sink - hidden)
    return ReadRule(sink, sympy.expand(span - sink))


def _text(rows: Rows) -> str:
    return f"[{rows.start}, {rows.stop})"
