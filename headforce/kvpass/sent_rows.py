"""Passes that send more rows than they cache: those in front are seen by nobody afterwards.

Accepted: the last rows of what was sent, the same ones of K and V; `n` may depend on the call, and may be 0.

    k = rope(k);  cache[:, a:b] = k[:, n:];  cache_v[:, a:b] = v[:, n:];  attention(q, ...)   # q has rows for all of k

Counter-examples: rows that are cached and followed by others that are not (HF-CACHE-RANGE); other rows of K than of V
(HF-KV-RANGE).
"""

from __future__ import annotations

from typing import NamedTuple

import sympy

from .buffer import rows_text, same_rows
from .graph_view import GraphView
from .history import Trace, trace
from .normal_form import Cursor
from .recognize import Refused
from .site import Rows


class Sent(NamedTuple):
    """The key of every row that was sent, and how many there are."""

    key: Cursor
    rows: sympy.Expr


def sent_rows(view: GraphView, query: Cursor, new_key: Cursor, new_value: Cursor) -> Sent | None:
    """What was sent, if `new_key` and `new_value` are only the last rows of it; None where each query has its row.

    Raises HF-CACHE-RANGE and HF-KV-RANGE for rows that are not the last, or not the same of K and V.
    """
    queries, keys = _rows(view, query), _rows(view, new_key)
    k, v = (_sliced(view, cursor) for cursor in (new_key, new_value))
    if queries is None or keys is None or same_rows(view, [(queries, keys)]) is None or k is None:
        return None
    total = _rows(view, k.cursor)
    if total is None or same_rows(view, [(queries, total)]) is not None:
        return None
    if v is None:
        raise Refused("HF-KV-RANGE", "a part of K alone cached", "the same rows of both")
    key, value, other = k.spans["seq"], v.spans["seq"], _rows(view, v.cursor)
    if other is None or same_rows(view, [(key, value), (total, other)]) is not None:
        raise Refused("HF-KV-RANGE", f"rows {rows_text(key)} of K but {rows_text(value)} of V", "the same rows")
    if not view.ensure(sympy.Eq(key.stop, total.stop)):
        raise Refused(
            "HF-CACHE-RANGE",
            f"rows {rows_text(key)} of {total.stop} that were sent are cached",
            "all rows that a pass sends, or the last of them",
        )
    return Sent(k.cursor, total.stop)


def _sliced(view: GraphView, cursor: Cursor) -> Trace | None:
    """The tensor out of which rows were taken, and which; None if none were, or if other dims were cut too."""
    steps = list(trace(view, cursor))
    if set(steps[-1].spans) != {"seq"}:
        return None
    return next(step for step in steps if step.spans == steps[-1].spans)


def _rows(view: GraphView, cursor: Cursor) -> Rows | None:
    """All rows of a tensor."""
    return Trace(cursor, {}).rows("seq", view)
