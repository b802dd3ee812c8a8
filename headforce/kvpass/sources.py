"""Where operands come from: the activations behind the projections, and the graph inputs in front of them."""

from __future__ import annotations

from torch.fx import Node

from .axes import label_dims
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .ops import op_name, tensor_argument
from .torch_private import SDPA_TARGETS

CONTRACTIONS = frozenset({"linear", "matmul", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d"})


def behind(view: GraphView, *starts: Node) -> tuple[set[Node], set[Node]]:
    """The contractions (and attention calls) and the graph inputs that data reaches `starts` from without another
    contraction."""
    contractions, inputs, seen, queue = set(), set(), set(starts), list(starts)
    while queue:
        node = queue.pop()
        if op_name(node) in CONTRACTIONS or node.target in SDPA_TARGETS or node.op == "call_module":
            contractions.add(node)
            continue
        if node.op == "placeholder":
            inputs.add(node)
            continue
        fresh = [n for n in node.all_input_nodes if n not in seen]
        seen.update(fresh)
        queue += fresh
    return contractions, inputs


def activations(view: GraphView, *starts: Node) -> set[Node]:
    """The inputs of the projections behind `starts`, with views and casts looked through."""
    found = set()
    for node in behind(view, *starts)[0]:
        source = tensor_argument(node) or next(iter(node.all_input_nodes), None)
        shape = view.shape(source)
        if source is None or shape is None:
            continue
        *_, last = walk(Cursor(source, label_dims([str(i) for i in range(len(shape))], shape)), view)
        found.add(last.node)
    return found
