"""The deferred protocol (P2): the pass works on a copy of the cache, and what it did to the copy is done to the cache
itself once all layers have run.

Accepted, with the buffer `cache` as in the append protocol, and everything it accepts, done to the copy:

    temp = cache.clone();  temp[:, a:b] = k;  attention(q, temp[:, max(0, b - w):b], ...)
    ...;  cache[:, a:b] = k                                                   # later in the same graph
    temp[:, s:s+n] = temp[:, s+e:s+e+n].clone();  temp[:, a:b] = k            # a roll, and the same roll of the cache
    attention(q, cat([temp[:, :s], temp[:, b-w:b]], 1), ...)                  # sink and window of the copy (P4)

Counter-examples: those of the append protocol; a cache that the graph leaves as it is, or changes in another way than
the copy (HF-CACHE-COMMIT); a cache that is changed before it is copied (HF-CACHE-ORDER).
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from ..axes import label_dims
from ..buffer import Buffered, join, reading, rows_text, same_rows, writes_of
from ..cache_uses import Write, uses
from ..graph_view import GraphView
from ..history import Trace, landing, same_value
from ..normal_form import Cursor
from ..ops import op_name
from .append_cache import is_written
from .base import AttentionCall, CacheMatch, Refused, recognizer

_NEEDED = "what was done to the copy done to the cache as well, later in the same graph"


@recognizer("cache", order=5)
def deferred_cache(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise a written copy of a graph input; None if K or V does not come from one."""
    k_copy, v_copy = (_copy(view, operand) for operand in (call.k, call.v))
    if k_copy is None or v_copy is None:
        return None
    caches = tuple(_copied(view, copy).node for copy in (k_copy, v_copy))
    if caches[0] is caches[1]:
        raise Refused("HF-SHARED-KV", f"K and V both copies of {caches[0].name}", "a cache input each for K and V")
    k = Buffered(view, call, call.k, reading(view, call.k, k_copy, factors=True))
    v = Buffered(view, call, call.v, reading(view, call.v, v_copy))
    match = join(view, call, k, v, caches)
    appends, rolls = list(match.form.write_nodes), list(match.form.roll_nodes)
    for cache, side in zip(caches, (k, v), strict=True):
        append, roll = _commit(view, cache, side)
        appends.append(append.node)
        rolls += [] if roll is None else [roll.node]
    return replace(match, form=replace(match.form, write_nodes=tuple(appends), roll_nodes=tuple(rolls)))


def _copy(view: GraphView, operand: Cursor) -> Node | None:
    """The copy, written in place, of a graph input from which an operand of attention is read."""
    for part in reading(view, operand, factors=True).parts:
        for node in (part.node, view.root(part.node), *reversed(part.cursor.passed)):
            if op_name(node) == "clone" and is_written(view, node):
                end = _copied(view, node)
                return node if end.node.op == "placeholder" and not end.spans and not end.cursor.casts else None
    return None


def _copied(view: GraphView, copy: Node) -> Trace:
    """What a copy is a copy of; the axes are those of the copy."""
    shape = view.shape(copy)
    return landing(view, Cursor(copy, label_dims([str(i) for i in range(len(shape or ()))], shape or ())))


def _commit(view: GraphView, cache: Node, side: Buffered) -> tuple[Write, Write | None]:
    """The append and the roll of the cache itself, which are those of the copy."""
    shape = view.shape(cache)
    if _copied(view, side.buffer).cursor.axes != label_dims([str(i) for i in range(len(shape))], shape):
        raise Refused("HF-CACHE-FORM", f"{cache.name} copied with its dims in another order", "a plain copy")
    used = uses(view, cache, side.layout)
    try:
        append, roll, rolled = writes_of(view, cache, used)
    except Refused as refused:
        raise Refused("HF-CACHE-COMMIT", refused.found, _NEEDED) from None
    if (roll is None) != (side.roll is None):
        raise Refused("HF-CACHE-COMMIT", f"a roll of only one of {cache.name} and its copy", _NEEDED)
    pairs = [(append.rows, side.append.rows)]
    if roll is not None and side.roll is not None:
        pairs += [(roll.source, side.roll.source), (roll.target, side.roll.target)]
    other = same_rows(view, pairs)
    if other is not None:
        a, b = map(rows_text, other)
        raise Refused("HF-CACHE-COMMIT", f"rows {a} of {cache.name} but {b} of its copy", _NEEDED)
    if not same_value(view, append.value, side.append.value):
        raise Refused("HF-CACHE-COMMIT", f"other values for {cache.name} than for its copy", _NEEDED)
    writes = used.writes
    if min(view.order[write.node] for write in writes) < view.order[side.buffer]:
        raise Refused("HF-CACHE-ORDER", f"{cache.name} written before it is copied", "copy, then write")
    carried = set() if rolled is None else set(rolled[1].cursor.passed)
    readers = [n for n in used.consumers if n is not side.buffer and n not in carried]
    if readers:
        raise Refused(
            "HF-ESCAPE",
            f"{cache.name} also read by {readers[0].format_node() or readers[0].name}",
            "a cache that only this attention call reads",
        )
    return append, None if rolled is None else rolled[0]
