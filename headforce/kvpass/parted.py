"""Taking the numbers out of a graph, so that what is left is a function of tensors alone.

The first frame of a chunk and the indices of a cache are numbers, and change from chunk to chunk. What reads a number
goes in front: the number's own arithmetic, and the tensors that are cut or made by it, such as the rows of a RoPE
table. The body takes those tensors as inputs. A captured graph needs that, since it repeats the arguments it was
captured with; and graphs that differ in their numbers alone, as those of one video do, have the same body, which is
compiled once (`bodies`). So that the first chunk, whose numbers are constants to Dynamo, has it too, RoPE tables are
always cut in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..errors import HeadforceError
from .graph_inputs import AddedInputs
from .ops import ALIASING, op_name, tensor_argument, writes_in_place
from .torch_private import forward_of, graph_module, input_source

STATE = ("_parameters[", "_buffers[")
"""How the source of a model's own tensor reads, which keeps its address from call to call."""

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class Parted:
    """A graph in two.

    Attributes:
        front: takes all inputs; gives what the graph returns besides the body's results, then `made` tensors.
        body: takes the inputs `takes` of the graph, then the tensors that the front made, each in order of first use.
        examples: of the body's inputs. own: which of them headforce added.
        stable: of those `takes`, which keep their address or are written in place.
        returns: for every output of the graph, whether it is the body's, and its number among those of that part.
    """

    front: Callable[..., Sequence[Any]]
    body: GraphModule
    examples: list[Any]
    takes: tuple[int, ...]
    stable: tuple[bool, ...]
    own: tuple[bool, ...]
    made: int
    returns: tuple[tuple[bool, int], ...]

    def joined(self, compiled: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        """The graph again: the front, then `compiled`, which is made of the body."""

        def run(*args: Any) -> Any:
            ahead = self.front(*args)
            results = compiled(*[args[i] for i in self.takes], *ahead[len(ahead) - self.made :])
            return tuple(results[i] if own else ahead[i] for own, i in self.returns)

        return run


def parted(module: GraphModule, examples: Sequence[Any], added: int, tables: Iterable[Node] = ()) -> Parted:
    """Cuts `module`, a lowered graph that nobody else uses. Its last `added` inputs are headforce's own.

    Args:
        tables: inputs that hold RoPE tables.

    Raises HF-CUDAGRAPHS for a graph in which attention, or a write in place, stands before a number or depends on one;
    `module` is then as it was.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, examples, strict=True))
    ahead = _ahead(module.graph, values, set(tables))
    obstacle = _obstacle(module.graph, ahead)
    if obstacle is not None:
        raise obstacle
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    results = output.args[0]
    own = [r for r in results if isinstance(r, Node) and r not in ahead and r.op != "placeholder"]
    others = [r for r in results if r not in own]
    made, front = _front(module, ahead, inputs, others)
    inside = AddedInputs(module, examples)
    for i, nodes in enumerate(made):
        value = nodes[0].meta["example_value"]
        new = inside.add(f"hf_made_{i}", value.shape, value.dtype, value.device, (), value.stride())
        for node in nodes:
            node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in ahead and user.op != "output")
    places = [(True, own.index(r)) if r in own else (False, others.index(r)) for r in results]
    output.args = (tuple(own),)
    for node in reversed([n for n in module.graph.nodes if n in ahead]):
        module.graph.erase_node(node)
    for node in inputs:
        if not node.users:
            module.graph.erase_node(node)
    order = _by_first_use(module.graph)
    takes = sorted((i for i, node in enumerate(inputs) if node.users), key=lambda i: order[inputs[i]])
    end = next(node for node in module.graph.nodes if node.op != "placeholder")
    for node in (*(inputs[i] for i in takes), *inside.nodes):
        end.prepend(node)
    module.graph.lint()
    module.recompile()
    changed = written(module.graph)
    first = len(inputs) - added
    own_inputs = (*(i >= first for i in takes), *[False] * len(made))
    stable = [i >= first or inputs[i] in changed or any(s in input_source(inputs[i]) for s in STATE) for i in takes]
    kept = [examples[i] for i in takes] + inside.examples[len(examples) :]
    returned = tuple(places)
    return Parted(front, module, kept, tuple(takes), tuple(stable), own_inputs, len(made), returned)


def partable(module: GraphModule, examples: Sequence[Any], tables: Iterable[Node] = ()) -> bool:
    """Whether `parted` can cut `module`, and nothing but numbers and views of tensors would be left to the front, which
    is not compiled."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    ahead = _ahead(module.graph, dict(zip(inputs, examples, strict=True)), set(tables))
    cheap = all(op_name(node) in ALIASING or not _holds_tensors(node) for node in ahead)
    return cheap and _obstacle(module.graph, ahead) is None


def _by_first_use(graph: Graph) -> dict[Node, int]:
    """The order in which nodes are used first."""
    order: dict[Node, int] = {}
    for node in graph.nodes:
        for operand in node.all_input_nodes:
            order.setdefault(operand, len(order))
    return order


def _ahead(graph: Graph, values: dict[Node, Any], tables: set[Node]) -> set[Node]:
    """The nodes that have to run in front: those that give or take a number, and whatever goes with them."""
    queue = [
        node
        for node in graph.nodes
        if node.op not in ("placeholder", "output")
        and (_is_number(node, values) or any(_is_number(operand, values) for operand in node.all_input_nodes))
    ]
    queue += _cuts(graph, tables)
    found: set[Node] = set()
    while queue:
        node = queue.pop()
        if node not in found and node.op != "placeholder":
            found.add(node)
            queue += node.all_input_nodes
            if not _is_tensor(node):  # only tensors pass from the front to the body
                queue += [user for user in node.users if user.op != "output"]
    return found


def _cuts(graph: Graph, tables: set[Node]) -> list[Node]:
    """The slices of these tensors and of their views."""
    views, found = set(tables), []
    for node in graph.nodes:
        if op_name(node) in ALIASING and tensor_argument(node) in views:
            views.add(node)
            if op_name(node) in ("narrow", "select") or (op_name(node) == "getitem" and _is_tensor(node.args[0])):
                found.append(node)
    return found


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("example_value"), Tensor)


def _holds_tensors(node: Node) -> bool:
    value = node.meta.get("example_value")
    return any(isinstance(part, Tensor) for part in (value if isinstance(value, (tuple, list)) else (value,)))


def _is_number(node: Node, values: dict[Node, Any]) -> bool:
    value = values.get(node, node.meta.get("example_value"))
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(part, _NUMBERS) for part in parts)


def _obstacle(graph: Graph, ahead: set[Node]) -> HeadforceError | None:
    """HF-CUDAGRAPHS unless what runs in front changes nothing, and reads nothing that the body changes before."""
    changed = written(graph)
    for node in ahead:
        ours = getattr(node.target, "namespace", "") == "headforce"
        writes = any(writes_in_place(node, operand) for operand in node.all_input_nodes)
        reads_written = any(root in changed for operand in node.all_input_nodes for root in _roots(operand))
        if ours or writes or reads_written:
            return HeadforceError(
                "HF-CUDAGRAPHS",
                site=node.name,
                found=f"{node.target} in front of a number that changes from chunk to chunk, or depending on one",
                needed="sizes that stay, and a cache that headforce owns",
            )
        if isinstance(value := node.meta.get("example_value"), Tensor) and any(
            not isinstance(size, int) for size in (*value.shape, *value.stride())
        ):
            return HeadforceError(
                "HF-CUDAGRAPHS",
                site=node.name,
                found=f"a tensor of shape {tuple(value.shape)}, whose size changes from call to call",
                needed="sizes that stay (dynamic=False)",
            )
    return None


def _roots(node: Node) -> set[Node]:
    """The nodes whose memory `node` may show."""
    if op_name(node) not in ALIASING:
        return {node}
    return {root for operand in node.all_input_nodes for root in _roots(operand)}


def written(graph: Graph) -> set[Node]:
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
    first = _by_first_use(module.graph)
    order = sorted(made, key=lambda twin: min(first[node] for node in made[twin]))
    returned = [torch.fx.map_arg(other, twins.__getitem__) for other in others]
    graph.output((*returned, *order))
    return [made[twin] for twin in order], forward_of(graph_module(module, graph))
