"""A past in several graph inputs: recognised, and refused with HF-CACHE-PARTS.

    ring[i % n] = k;  attention(q, torch.cat(ring, 1), ...)                   # a Python list of past tensors
    attention(q, torch.cat([bank, recent, k], 1), ...)                        # caches of different content

Which rows are which frames follows from the order of the inputs, and in a ring that changes from call to call. Asked
after all forms that can be taken. Counter-example: parts of one input (`append_cache`, `cat_history`).
"""

from __future__ import annotations

from ..buffer import reading
from ..graph_view import GraphView
from .base import AttentionCall, CacheMatch, Refused, recognizer


@recognizer("cache", order=90)
def cache_parts(view: GraphView, call: AttentionCall) -> CacheMatch | None:
    """Refuse K or V that joins several graph inputs."""
    for operand in (call.k, call.v):
        parts = reading(view, operand, factors=True).parts
        inputs = dict.fromkeys(part.node for part in parts if part.node.op == "placeholder")
        if len(inputs) > 1:
            raise Refused(
                "HF-CACHE-PARTS",
                f"a past joined from {', '.join(node.name for node in inputs)}",
                "one graph input that holds the past, or cat([past, new])",
            )
    return None
