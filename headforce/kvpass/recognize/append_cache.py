"""The append protocol (P1): the pass writes its rows into a buffer in place and attention reads a slice that ends
with them.

Accepted, with the buffer `cache` a graph input of shape [B, C, H, D] or [B, H, C, D]:

    cache[:, a:b] = k;  attention(q, cache[:, max(0, b - w):b], ...)          # also cache[:, :b], or the whole cache
    cache[:, a:b].copy_(k);  cache.narrow(1, a, n).copy_(k)
    cache[:, s:s+n] = cache[:, s+e:s+e+n].clone();  cache[:, a:b] = k         # a roll evicts e rows after s sink rows
    cache[:, a:b] = k;  attention(q, cat([cache[:, :s], cache[:, b-w:b]], 1), ...)   # sink and window of it (P4)

Counter-examples and their codes: the cache or the slice is read by anything else (HF-ESCAPE); the read does not end
where the append ends, or starts after it, or its parts are out of order (HF-CACHE-RANGE); K and V differ in rows
(HF-KV-RANGE); one tensor holds K and V (HF-SHARED-KV); a read before the write, or a write after the read
(HF-CACHE-ORDER); a roll without a copy, to the right, or leaving a gap (HF-ROLL); other writes, such as an index tensor
or a blend into the sink (HF-CACHE-FORM).
"""

from __future__ import annotations

from torch.fx import Node

from ..buffer import Buffered, join, reading
from ..cache_uses import uses
from ..graph_view import GraphView
from .base import AttentionCall, CacheMatch, Refused, recognizer


@recognizer("cache", order=10)
def append_cache(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Recognise a buffer that is written in place; None if K does not come from a graph input that the graph writes."""
    ends = reading(view, call.k, factors=True), reading(view, call.v)
    buffers = [{part.node for part in end.parts} for end in ends]
    written = [b for nodes in buffers for b in nodes if b.op == "placeholder" and is_written(view, b)]
    if not written or any(len(nodes) > 1 for nodes in buffers):
        return None
    k, v = (nodes.pop() for nodes in buffers)
    if k.op != "placeholder" or v.op != "placeholder":
        raise Refused(
            "HF-CACHE-FORM", "one of K and V read from a cache, the other not", "both read from caches of one form"
        )
    if k is v:
        raise Refused("HF-SHARED-KV", f"K and V both read from {k.name}", "a cache input each for K and V")
    sides = [Buffered(view, call, start, end) for start, end in zip((call.k, call.v), ends, strict=True)]
    return join(view, call, *sides, (k, v))


def is_written(view: GraphView, node: Node) -> bool:
    """Whether the graph changes a tensor or a view of it."""
    used = uses(view, node, ("",) * len(view.shape(node) or ()))
    return bool(used.writes or used.unknown)
