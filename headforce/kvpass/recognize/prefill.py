"""A prefill: the pass writes its rows into a cache, and attention reads those rows themselves, not the cache.

Accepted, with the buffer `cache` as in the append protocol, whatever the mask:

    cache[:, :n] = k;  attention(q, k, v, ...)
    cache[:, :n] = k;  attention(pad(q), pad(k), pad(v), mask)[:, :n]         # pad(x): cat([x, zeros], 1)

The call has no past, so it stays as it is; only the writes are of interest. Whether the policy reads none there either,
which holds at frame 0 alone, is checked when the graph runs. Counter-examples: a cache that something reads, is
written twice or takes other values than attention reads (then this is of no known form); K and V written to different
rows (HF-KV-RANGE).
"""

from __future__ import annotations

import sympy
from torch.fx import Node

from ..buffer import rows_text, same_rows
from ..cache_uses import Write, uses
from ..graph_view import GraphView
from ..history import landing, same_value
from ..normal_form import Cursor, settle
from ..ops import op_name, sequence_argument
from ..site import PREFILL, CacheForm, ReadRule
from .base import CACHE_LAYOUTS, AttentionCall, CacheMatch, Refused, recognizer

_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})


@recognizer("prefill", order=10)
def prefill(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise caches that take the operands of attention and that nothing reads; None for another form."""
    if landing(view, call.k).node.op == "placeholder":
        return None  # what attention reads was there before
    k, v = (settle(unpadded(view, operand), view) for operand in (call.k, call.v))
    sides = [_kept(view, operand) for operand in (k, v)]
    if sides[0] is None or sides[1] is None:
        return None
    (k_cache, key), (v_cache, value) = sides[0], sides[1]
    other = same_rows(view, [(key.rows, value.rows)])
    if other is not None:
        raise Refused(
            "HF-KV-RANGE", f"K rows {rows_text(key.rows)} but V rows {rows_text(value.rows)}", "the same rows"
        )
    layout = key.value.layout
    assert layout is not None
    capacities = [view.shape(cache)[layout.index("seq")] for cache in (k_cache, v_cache)]
    if value.value.layout != layout or not view.ensure(sympy.Eq(*capacities)):
        raise Refused("HF-KV-RANGE", f"caches of {capacities[0]} and {capacities[1]} rows", "caches of one shape")
    form = CacheForm(
        kind=PREFILL,
        k_input=k_cache,
        v_input=v_cache,
        k_index=view.input_index[k_cache],
        v_index=view.input_index[v_cache],
        layout=layout,
        dtype=view.dtype(k_cache),
        append=key.rows,
        read=key.rows,
        capacity=capacities[0],
        roll=None,
        rule=ReadRule(None, None),
        segments=(key.rows,),
        write_nodes=(key.node, value.node),
        roll_nodes=(),
        read_dtype=view.dtype(call.k.node),
    )
    return CacheMatch(form, key.value, value.value)


def unpadded(view: GraphView, operand: Cursor) -> Cursor:
    """The operand without the zeros that were put behind its rows."""
    end = landing(view, operand)
    parts = sequence_argument(end.node)
    if op_name(end.node) != "cat" or end.spans or len(parts) < 2 or any(op_name(p) not in _ZEROS for p in parts[1:]):
        return operand
    joined = [i for i, (a, b) in enumerate(zip(view.shape(end.node), view.shape(parts[0]), strict=True)) if a != b]
    axes, shape = list(end.cursor.axes), view.shape(parts[0])
    if len(joined) != 1 or len(axes[joined[0]]) != 1 or axes[joined[0]][0].label != "seq":
        return operand
    axes[joined[0]] = (axes[joined[0]][0]._replace(size=shape[joined[0]]),)
    return end.cursor.to(parts[0], tuple(axes), view)


def _kept(view: GraphView, operand: Cursor) -> tuple[Node, Write] | None:
    """The graph input that takes the rows of an operand and that nothing reads, and the write."""
    for cache in view.placeholders:
        if len(view.shape(cache) or ()) != 4:
            continue
        for layout in CACHE_LAYOUTS:
            used = uses(view, cache, layout)
            if len(used.writes) == 1 and same_value(view, operand, used.writes[0].value):
                return None if used.unknown or used.consumers else (cache, used.writes[0])
    return None
