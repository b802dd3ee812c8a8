"""Operands whose batch and heads are one axis, as `bmm` wants them: told apart again."""

from __future__ import annotations

from dataclasses import replace

import sympy

from .axes import Atom, Dim
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .recognize.base import AttentionCall, Refused

FOLD = "fold"
"""The label of an axis that holds batch and heads."""


def unfolded(view: GraphView, call: AttentionCall) -> AttentionCall:
    """The call with batch and heads told apart, as the query had them. Raises HF-LAYOUT if no dim shows the heads."""
    total = next((dim[0].size for dim in call.q.axes if _fold(dim)), sympy.S.One)
    heads = sympy.S.One if total == 1 else _heads(view, call.q)
    if heads is None:
        raise Refused(
            "HF-LAYOUT",
            "batch and heads in one axis, and no dim that shows the heads",
            "a query made from [B, S, H, D]",
        )
    batch = sympy.cancel(total / heads)
    both = tuple(Atom(label, size) for label, size in (("batch", batch), ("head", heads)) if size != 1)

    def split(cursor: Cursor) -> Cursor:
        return replace(cursor, axes=tuple(both if _fold(dim) else dim for dim in cursor.axes))

    at = call.layout.index(FOLD)
    layout = (*call.layout[:at], "batch", "head", *call.layout[at + 1 :])
    return replace(call, q=split(call.q), k=split(call.k), v=split(call.v), layout=layout, folded=at)


def _fold(dim: Dim) -> bool:
    return len(dim) == 1 and dim[0].label == FOLD


def _heads(view: GraphView, cursor: Cursor) -> sympy.Expr | None:
    """The size of the head axis: the faster part of a folded one, or all of it for a batch of one."""
    for step in walk(cursor, view, factors=True):
        places = [(i, a) for i, d in enumerate(step.axes) for a in d if a.label == FOLD]
        if len(step.axes) != 4 or any(len(d) > 1 for d in step.axes):
            continue
        if len(places) == 2:
            return next((a.size for _, a in places if a.stride == 1), None)
        if len(places) == 1:
            at, atom = places[0]
            return sympy.S.One if at == 0 else atom.size
    return None
