"""The first pass of a model that joins its past by `cat`: the past is a graph input without rows.

    k = torch.cat([past_k, k], dim=1)       # past_k is [B, 0, H, D]

There is nothing to choose from yet, and the size 0 is part of the graph, so it runs in such passes only.
Counter-examples: a past that may have rows, which is `cat_history`; an empty input besides rows of a past, as an empty
bank in front of the newest rows, or an empty text in front of a cache.
"""

from __future__ import annotations

from torch.fx import Node

from ..graph_view import GraphView
from ..history import landing
from ..normal_form import Cursor
from ..ops import op_name, sequence_argument
from ..sources import behind
from .append_cache import is_written
from .base import AttentionCall, Excluded, recognizer, rotated


@recognizer("exclude", order=20)
def empty_past(view: GraphView, call: AttentionCall) -> Excluded | None:
    """Why this call has no past, if K and V are each joined to an empty graph input; else None."""
    k, v = _past(view, call.k), _past(view, call.v)
    if k is None:  # keys may be rotated after they are joined
        rotation, _ = rotated(view, call.k)
        k = None if rotation is None else _past(view, rotation.raw)
    if k is None or v is None:
        return None
    return Excluded("HF-FIRST", f"the past {k.name} and {v.name} has no rows in this graph")


def _past(view: GraphView, cursor: Cursor) -> Node | None:
    """The empty graph input in front of new rows, which nothing else is joined with."""
    last = landing(view, cursor, factors=True).cursor
    for node in (*last.passed, last.node):
        pasts = sequence_argument(node)[:-1] if op_name(node) == "cat" else ()
        empty = all(part.op == "placeholder" and _is_empty(view, part) for part in pasts)
        if pasts and empty and not _from_cache(view, last.node):
            return pasts[0]
    return None


def _is_empty(view: GraphView, node: Node) -> bool:
    return 0 in (view.shape(node) or ())


def _from_cache(view: GraphView, node: Node) -> bool:
    """Whether rows may be those of a past: a graph input, or made from one that is written, or joined with others.

    New rows are projections; RoPE tables among the inputs behind them are not meant.
    """
    given = {n for n in behind(view, node)[1] if not _is_empty(view, n)}
    parts = sequence_argument(node) if op_name(node) == "cat" else ()
    return (
        node in given
        or any(is_written(view, n) for n in given)
        or any(not behind(view, part)[0] and behind(view, part)[1] & given for part in parts)
    )
