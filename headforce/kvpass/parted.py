"""Taking the numbers out of a graph, so that what is left is a function of tensors alone.

The first frame of a chunk and the indices of a cache are numbers, and change from chunk to chunk. A captured graph
repeats the arguments it was captured with, so what reads a number goes in front: the number's own arithmetic, and the
tensors that are cut or made by it, such as the rows of a RoPE table. The body takes those tensors as inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..errors import HeadforceError
from .graph_inputs import AddedInputs
from .ops import ALIASING, op_name, writes_in_place
from .torch_private import input_source

STATE = ("_parameters[", "_buffers[")
"""How the source of a model's own tensor reads, which keeps its address from call to call."""

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Parted:
    """A graph in two.

    Attributes:
        front: takes all inputs; gives what the graph returns besides the body's results, then `made` tensors.
        body: takes the inputs `takes` of the graph, then the tensors that the front made.
        examples: of the body's inputs. stable: of those `takes`, which keep their address or are written in place.
        returns: for every output of the graph, whether it is the body's, and its number among those of that part.
    """

    front: Callable[..., Sequence[Any]]
    body: GraphModule
    examples: list[Any]
    takes: tuple[int, ...]
    stable: tuple[bool, ...]
    made: int
    returns: tuple[tuple[bool, int], ...]


def parted(module: GraphModule, examples: Sequence[Any], added: int) -> Parted:
    """Cuts `module`, a lowered graph that nobody else uses. Its last `added` inputs are headforce's own.

    Raises HF-CUDAGRAPHS for a graph in which attention, or a write in place, stands before a number or depends on one.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, examples, strict=True))
    ahead = _ahead(module.graph, values)
    _check(module.graph, ahead)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    results = output.args[0]
    own = [r for r in results if isinstance(r, Node) and r not in ahead and r.op != "placeholder"]
    others = [r for r in results if r not in own]
    made, front = _front(module, ahead, inputs, others)
    inside = AddedInputs(module, examples)
    for i, nodes in enumerate(made):
        value = nodes[0].meta["example_value"]
        new = inside.add(f"hf_made_{i}", value.shape, value.dtype, value.device, ())
        for node in nodes:
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in ahead and user.op != "output")
    places = [(True, own.index(r)) if r in own else (False, others.index(r)) for r in results]
    output.args = (tuple(own),)
    for node in reversed([n for n in module.graph.nodes if n in ahead]):
        module.graph.erase_node(node)
    takes = [i for i, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    written = _written(module.graph)
    first = len(inputs) - added
    stable = [i >= first or inputs[i] in written or any(s in input_source(inputs[i]) for s in STATE) for i in takes]
    kept = [examples[i] for i in takes] + inside.examples[len(examples) :]
    return Parted(front, module, kept, tuple(takes), tuple(stable), len(made), tuple(places))


def _ahead(graph: Graph, values: dict[Node, Any]) -> set[Node]:
    """The nodes that have to run in front: those that give or take a number, and whatever goes with them."""
    queue = [
        node
        for node in graph.nodes
        if node.op not in ("placeholder", "output")
        and (_is_number(node, values) or any(_is_number(operand, values) for operand in node.all_input_nodes))
    ]
    found: set[Node] = set()
    while queue:
        node = queue.pop()
        if node not in found and node.op != "placeholder":
            found.add(node)
            queue += node.all_input_nodes
            if not isinstance(node.meta.get("example_value"), Tensor):  # only tensors pass from the front to the body
                queue += [user for user in node.users if user.op != "output"]
    return found


def _is_number(node: Node, values: dict[Node, Any]) -> bool:
    value = values.get(node, node.meta.get("example_value"))
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(part, _NUMBERS) for part in parts)


def _check(graph: Graph, ahead: set[Node]) -> None:
    """HF-CUDAGRAPHS unless what runs in front changes nothing, and reads nothing that the body changes before."""
    written = _written(graph)
    for node in ahead:
        ours = getattr(node.target, "namespace", "") == "headforce"
        writes = any(writes_in_place(node, operand) for operand in node.all_input_nodes)
        reads_written = any(root in written for operand in node.all_input_nodes for root in _roots(operand))
        if ours or writes or reads_written:
            raise HeadforceError(
                "HF-CUDAGRAPHS",
                site=node.name,
                found=f"{node.target} in front of a number that changes from chunk to chunk, or depending on one",
                needed="sizes that stay, and a cache that headforce owns",
            )
        if isinstance(value := node.meta.get("example_value"), Tensor) and any(
            not isinstance(size, int) for size in value.shape
        ):
            raise HeadforceError(
                "HF-CUDAGRAPHS",
                site=node.name,
                found=f"a tensor of shape {tuple(value.shape)}, whose size changes from call to call",
                needed="sizes that stay (dynamic=False)",
            )


def _roots(node: Node) -> set[Node]:
    """The nodes whose memory `node` may show."""
    if op_name(node) not in ALIASING:
        return {node}
    return {root for operand in node.all_input_nodes for root in _roots(operand)}


def _written(graph: Graph) -> set[Node]:
    """The nodes whose memory some node changes in place."""
    return {
        root
        for node in graph.nodes
        for operand in node.all_input_nodes
        if writes_in_place(node, operand)
        for root in _roots(operand)
    }


def _front(
    module: GraphModule, ahead: set[Node], inputs: Sequence[Node], others: Sequence[Any]
) -> tuple[list[list[Node]], Callable[..., Sequence[Any]]]:
    """The nodes whose tensors the body takes, equal ones together, and the function that makes them."""
    graph, twins = Graph(), {}
    known: dict[str, Node] = {}
    for node in module.graph.nodes:
        if node in ahead or node.op == "placeholder":
            # Layers repeat each other: nothing here has an effect, so equal calls are one.
            text = f"{node.op} {node.target} {torch.fx.map_arg((node.args, node.kwargs), twins.__getitem__)}"
            if node.op == "placeholder" or text not in known:
                known[text] = graph.node_copy(node, twins.__getitem__)
            twins[node] = known[text]
    made: dict[Node, list[Node]] = {}
    for node in ahead:
        outside = [user for user in node.users if user not in ahead and user.op != "output"]
        if outside:
            made.setdefault(twins[node], []).append(node)
    order = [twin for twin in graph.nodes if twin in made]
    returned = [torch.fx.map_arg(other, twins.__getitem__) for other in others]
    graph.output((*returned, *order))
    return [made[twin] for twin in order], GraphModule(module, graph).forward
