"""Cross-attention: excluded with a reason, because its keys are not a past.

    k = self.k(context); attention(self.q(x), k, v)         # K and V projected from another activation
    attention(self.q(x), cache["k"], cache["v"])            # whole graph inputs that this graph never writes

Counter-examples, not excluded: keys that come from a cache the graph writes; queries with RoPE over a whole input (that
is a self-attention whose cache is written elsewhere; it is refused with HF-NOHISTORY); a query that is a graph input
too, as behind a graph break, which nothing tells from self-attention (HF-OPAQUE).
"""

from __future__ import annotations

from torch.fx import Node

from ..cache_uses import uses
from ..graph_view import GraphView
from ..history import landing
from ..normal_form import settle
from ..sources import activations, behind
from .base import AttentionCall, Excluded, Refused, recognizer, rotated


@recognizer("exclude", order=10)
def cross_attention(view: GraphView, call: AttentionCall) -> Excluded | None:
    """Why this call is cross-attention, or None if it is not."""
    ends = [landing(view, call.k), landing(view, call.v)]
    cached = [end for end in ends if end.node.op == "placeholder"]
    if len(cached) == 2:
        whole = not any(end.spans for end in cached) and not any(_touched(view, end.node) for end in cached)
        if whole and rotated(view, settle(call.q, view))[0] is None:
            names = " and ".join(end.node.name for end in ends)
            if not behind(view, call.q.node)[0]:
                raise Refused(
                    "HF-OPAQUE",
                    f"a query that comes into the graph, as {names} do",
                    "the projection of the query and its attention in one graph",
                )
            return Excluded(
                "HF-CROSS",
                f"K and V are the whole graph inputs {names}, which this graph does not write; the query has no RoPE",
            )
        return None
    keys, inputs = behind(view, call.k.node, call.v.node)
    if not keys or any(_touched(view, node) or len(view.shape(node) or ()) > 3 for node in inputs):
        return None  # something that may be a past is part of K or V
    query, context = activations(view, call.q.node), activations(view, call.k.node, call.v.node)
    if query and context and not query & context:
        names = ", ".join(sorted(node.name for node in context))
        return Excluded("HF-CROSS", f"K and V are projected from {names}, the query is not")
    return None


def _touched(view: GraphView, node: Node) -> bool:
    used = uses(view, node, ("",) * len(view.shape(node) or ()))
    return bool(used.writes or used.unknown)
