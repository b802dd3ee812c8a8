"""The first pass of a model that joins its past by `cat`: the past is a graph input without rows.

    k = torch.cat([past_k, k], dim=1)       # past_k is [B, 0, H, D]

There is nothing to choose from yet, and the size 0 is part of the graph, so it runs in such passes only.
Counter-example: a past that may have rows; that is `cat_history`.
"""

from __future__ import annotations

from torch.fx import Node

from ..graph_view import GraphView
from ..history import landing
from ..normal_form import Cursor
from ..ops import op_name, sequence_argument
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
    last = landing(view, cursor, factors=True).cursor
    for node in (*last.passed, last.node):
        if op_name(node) != "cat":
            continue
        for part in sequence_argument(node):
            if part.op == "placeholder" and 0 in (view.shape(part) or ()):
                return part
    return None
