"""The concat protocol (P3, P4): the past is a graph input and attention reads `cat([past, new])`.

Accepted, along the rows of [B, S, H, D] or [B, H, S, D], for K and V alike:

    k = torch.cat([past_k, k], dim=1); attention(q, k, v)                     # returned to the caller or not
    k = torch.cat([past_k, k], dim=1)[:, -w:]                                 # a window of the newest rows
    k = torch.cat([past_k[:, :s], past_k[:, -w:], k], dim=1)                  # sink and window of one past

What is returned of them are rows in their order up to the newest: all, a window, or a sink and a window.

Counter-examples: the past or the result is used by anything but this call and the graph's output (HF-ESCAPE); the
past is also written in place, or rows are returned in another order or with others than the new ones, which the next
pass would take for those of other frames (HF-CACHE-FORM); the parts are out of order, or the newest rows of the past
are left out (HF-CACHE-RANGE); K and V differ (HF-KV-RANGE, HF-SHARED-KV).
"""

from __future__ import annotations

from itertools import pairwise

import sympy
from torch.fx import Node

from ..axes import label_dims, single
from ..cache_uses import uses
from ..graph_view import GraphView
from ..history import Trace, landing, plain_layout, same_value
from ..normal_form import COPIES, Cursor
from ..ops import argument, op_name, sequence_argument
from ..site import CacheForm, ReadRule, Rows
from .base import CACHE_LAYOUTS, AttentionCall, CacheMatch, Refused, recognizer


@recognizer("cache", order=20)
def cat_history(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise K and V as concatenations of a past (a graph input) and the new rows; None for another form."""
    ends = [landing(view, call.k, factors=True), landing(view, call.v)]
    parts = [_parts(view, end) for end in ends]
    if not any(parts):
        return None
    if not all(parts):
        raise Refused("HF-CACHE-FORM", "a concatenated past for only one of K and V", "K and V kept in one form")
    k, v = (
        _Side(view, call, end, part, enters)
        for end, part, enters in zip(ends, parts, (call.k_user, call.v_user), strict=True)
    )
    if k.base is v.base:
        raise Refused("HF-SHARED-KV", f"K and V both from {k.base.name}", "a cache input each for K and V")
    if k.layout == v.layout:
        view.ensure(sympy.Eq(k.append.start, v.append.start))
    rows = [(k.append, v.append), *zip(k.segments, v.segments, strict=False)]
    same = all(view.facts.equal(a.start, b.start) and view.facts.equal(a.stop, b.stop) for a, b in rows)
    if not same or len(k.segments) != len(v.segments) or k.layout != v.layout:
        raise Refused("HF-KV-RANGE", f"K rows {k.segments} but V rows {v.segments}", "the same rows of K and V")
    form = CacheForm(
        kind="cat",
        k_input=k.base,
        v_input=v.base,
        k_index=view.input_index[k.base],
        v_index=view.input_index[v.base],
        layout=k.layout,
        dtype=view.dtype(k.base),
        append=k.append,
        read=Rows(k.segments[0].start, k.append.stop),
        capacity=k.append.start,
        roll=None,
        rule=k.rule(),
        segments=k.segments,
        write_nodes=(),
        roll_nodes=(),
        read_dtype=view.dtype(call.k.node),
        returned=(*k.returned, *v.returned),
    )
    return CacheMatch(form, k.new, v.new, ends[0].cursor.factor)


def _pieces(view: GraphView, end: Trace) -> list[Cursor] | None:
    """What a `cat` along the rows joins; None for another node."""
    pieces = sequence_argument(end.node)
    dim = argument(end.node, 1, "dim", 0)
    if op_name(end.node) != "cat" or len(pieces) < 2 or not isinstance(dim, int):
        return None
    axes = end.cursor.axes
    dim %= len(axes)
    atom = single(axes[dim], "seq")
    if atom is None or atom.stride != 1:
        return None
    found = []
    for piece in pieces:
        shape = view.shape(piece)
        if shape is None:
            return None
        named = (*axes[:dim], () if shape[dim] == 1 else (atom._replace(size=shape[dim]),), *axes[dim + 1 :])
        found.append(Cursor(piece, named))
    return found


def _parts(view: GraphView, end: Trace) -> list[Trace] | None:
    """Where the parts of a `cat` along the rows come from, if the first is a graph input and the last is another
    node."""
    pieces = _pieces(view, end)
    if pieces is None:
        return None
    found = [landing(view, piece) for piece in pieces]
    past = found[0].node
    if past.op != "placeholder" or found[-1].node is past or any(end.node is not past for end in found[1:-1]):
        return None
    return found


class _Side:
    """What one of K and V shows."""

    def __init__(self, view: GraphView, call: AttentionCall, end: Trace, parts: list[Trace], enters: Node) -> None:
        self.cat, self.base, shape = end.node, parts[0].node, view.shape(parts[0].node)
        layout = parts[0].cursor.layout
        if layout is None or any(
            p.cursor.layout != layout or set(p.spans) - {"seq"} or p.cursor.casts for p in parts[:-1]
        ):
            raise Refused(
                "HF-CACHE-FORM",
                f"{self.base.name} read as {parts[0].cursor.axes}",
                "a past [B, S, H, D] or [B, H, S, D]",
            )
        if not plain_layout(
            tuple(tuple(a._replace(stride=sympy.S.One) for a in d) for d in parts[0].cursor.axes), shape, view
        ):
            raise Refused(
                "HF-CACHE-FORM", f"{self.base.name} cut along heads or channels", "a past sliced along its rows only"
            )
        if not end.cursor.one_cast(view):
            raise Refused("HF-CACHE-FORM", f"{self.base.name} rounded on the way to attention", "at most one cast")
        self.layout = layout
        length = shape[layout.index("seq")]
        self.new = self._new(view, end)
        new_rows = view.shape(self.new.node)[self.new.layout.index("seq")]
        self.append = Rows(length, sympy.expand(length + new_rows))
        past = [p.rows("seq", view) or Rows(sympy.S.Zero, length) for p in parts[:-1]]
        facts = view.facts
        ordered = all(facts.le(a.stop, b.start) for a, b in pairwise(past))
        if not ordered or not facts.equal(past[-1].stop, length):
            raise Refused(
                "HF-CACHE-RANGE",
                f"parts {[tuple(map(str, r)) for r in past]} of a past of {length} rows",
                "parts in order, the last one ending with the past",
            )
        span = end.spans.get("seq")
        if span is not None:
            total = sympy.expand(sum((r.stop - r.start for r in past), sympy.S.Zero) + new_rows)
            if len(past) > 1 or not facts.equal(span.stop, total) or not facts.le(span.start, total - new_rows):
                raise Refused(
                    "HF-CACHE-RANGE",
                    f"rows {tuple(map(str, span))} of {total}",
                    "a window that ends with the new rows and holds them",
                )
            past = [Rows(sympy.expand(past[0].start + span.start), length)]
        self.segments = (*past[:-1], Rows(past[-1].start, self.append.stop))
        self.returned = self._escape(view, enters)

    def _new(self, view: GraphView, end: Trace) -> Cursor:
        piece = sequence_argument(self.cat)[-1]
        shape = view.shape(piece)
        dim = argument(self.cat, 1, "dim", 0) % len(shape)
        axes = list(end.cursor.axes)
        axes[dim] = () if shape[dim] == 1 else (axes[dim][0]._replace(size=shape[dim]),)
        axes = [tuple(a._replace(stride=sympy.S.One) for a in d) for d in axes]
        cursor = Cursor(piece, tuple(axes))
        if cursor.layout is None:
            raise Refused("HF-LAYOUT", f"new rows laid out as {cursor.axes}", "four dims: batch, head, rows, channels")
        return cursor

    def _escape(self, view: GraphView, enters: Node) -> tuple[Node, ...]:
        used = uses(view, self.base, self.layout)
        if used.writes or used.unknown:
            raise Refused("HF-CACHE-FORM", f"{self.base.name} both concatenated and written in place", "one of the two")
        region = view.region([self.cat], enters)
        leaving = [(node, n) for node in region for n in view.users(node) if n not in region and n is not enters]
        reads = [(a, n) for n in used.consumers if n not in region for a in n.all_input_nodes if a in used.aliases]
        carried = [(n, _carried(view, node, n)) for node, n in (*reads, *leaving)]
        bad = [n for n, ends in carried if ends is None]
        if bad or sum(n in region for n in enters.all_input_nodes) != 1:
            reader = bad[0] if bad else enters
            raise Refused(
                "HF-ESCAPE",
                f"{self.base.name} also read by {reader.format_node() or reader.name}",
                "a past that only this call and the output read",
            )
        for node in dict.fromkeys(node for _, ends in carried for node in ends or ()):
            if not self._in_order(view, node):
                raise Refused(
                    "HF-CACHE-FORM",
                    f"{node.name}, returned as what the next pass may have for {self.base.name}: not its rows and the "
                    "new ones in their order",
                    "cat([past, new]) returned as it is, or the newest rows of it, or a sink and the newest rows",
                )
        return tuple(dict.fromkeys(node for node, _ in leaving))

    def _in_order(self, view: GraphView, node: Node) -> bool:
        """Whether a tensor that is returned holds rows of the past and the new ones, in their order up to the newest.

        Or up to the newest of the past, where a pass does not keep what it computes.
        """
        shape, facts = view.shape(node) or (), view.facts
        for layout in CACHE_LAYOUTS if len(shape) == 4 else ():
            rows = self._rows(view, Cursor(node, label_dims(layout, shape)))
            newest = rows and any(facts.equal(rows[-1].stop, end) for end in (self.append.start, self.append.stop))
            if rows and newest and all(facts.le(a.stop, b.start) for a, b in pairwise(rows)):
                return True
        return False

    def _rows(self, view: GraphView, cursor: Cursor) -> list[Rows] | None:
        """Which rows of past and new ones, counted as one, a value holds; None if it holds anything else."""
        if same_value(view, cursor, self.new):
            return [self.append]
        end = landing(view, cursor)
        span = end.spans.get("seq")
        if set(end.spans) - {"seq"}:
            return None
        if end.node is self.base:
            whole = Rows(sympy.S.Zero, self.append.start)
            return [span or whole] if end.cursor.layout == self.layout else None
        pieces, found = _pieces(view, end), list[Rows]()
        if pieces is None:
            return None
        for piece in pieces:
            rows = self._rows(view, piece)
            if rows is None:
                return None
            for more in rows:
                meet = bool(found) and view.facts.equal(found[-1].stop, more.start)
                found = [*found[:-1], Rows(found[-1].start, more.stop)] if meet else [*found, more]
        return found if span is None else _cut(view, found, span)

    def rule(self) -> ReadRule:
        first, last = self.segments[0], self.segments[-1]
        if len(self.segments) == 1:
            return ReadRule(None, None if first.start == 0 else sympy.expand(last.stop - first.start))
        sink = first.stop if len(self.segments) == 2 and first.start == 0 else None
        return ReadRule(sink, sympy.expand(last.stop - last.start))


def _cut(view: GraphView, rows: list[Rows], span: Rows) -> list[Rows] | None:
    """The part `span` of rows that stand one behind the other: of one range any, of several all or some of the last."""
    last = rows[-1]
    if len(rows) == 1:
        return [Rows(sympy.expand(last.start + span.start), sympy.expand(last.start + span.stop))]
    total = sympy.expand(sum((r.stop - r.start for r in rows), sympy.S.Zero))
    length = sympy.expand(total - span.start)
    if not view.facts.equal(span.stop, total):
        return None
    if span.start == 0:
        return rows
    return (
        [Rows(sympy.expand(last.stop - length), last.stop)] if view.facts.le(length, last.stop - last.start) else None
    )


def _carried(view: GraphView, source: Node, reader: Node) -> list[Node] | None:
    """What becomes of `source` in the graph's output, through a reader that only carries rows there.

    By slices, copies and concatenations; None if anything is computed.
    """
    if reader.op == "output":
        return [source]
    if op_name(reader) not in COPIES | {"getitem", "narrow", "cat", "transpose", "permute"}:
        return None
    ends = [_carried(view, reader, user) for user in view.users(reader)]
    return None if None in ends else [node for found in ends for node in found or ()]
