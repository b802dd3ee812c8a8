"""A body cut behind every attention, so that what the layers of a model repeat is compiled once.

Compilers take their time by the node, and a model of thirty layers is one layer thirty times. Behind attention a cut
costs nothing: on either side is an operator that nothing is fused with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from .ops import writes_in_place
from .parted import roots, written
from .torch_private import copy_source, fake_mode, with_source

LEAST = 3
"""Attentions of a body that is cut: with fewer nothing lies between two of them twice."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a body.

    Attributes:
        module: takes values of the body, and gives others. examples: of what it takes.
        own: of what it takes, which are inputs that headforce added.
        takes: their numbers; the inputs of the body come first, then what pieces give, in order.
        drops: numbers of the values that nothing takes after it.
    """

    module: GraphModule
    examples: list[Any]
    own: list[bool]
    takes: list[int]
    drops: list[int]


@dataclass(frozen=True)
class Pieces:
    """A body in pieces. `returns`: the numbers of the values that it gives."""

    pieces: list[Piece]
    returns: list[int]

    def joined(self, compiled: Sequence[Callable[..., Sequence[Any]]]) -> Callable[..., Sequence[Any]]:
        """The body again: one function after the other, each made of the piece at its place."""
        steps = [(run, piece.takes, piece.drops) for run, piece in zip(compiled, self.pieces, strict=True)]
        returns = self.returns

        def run(*args: Any) -> list[Any]:
            values = list(args)
            for function, takes, drops in steps:
                values += function(*[values[i] for i in takes])
                for i in drops:
                    values[i] = None
            return [values[i] for i in returns]

        return run


def in_pieces(body: GraphModule, examples: Sequence[Any], own: Sequence[bool]) -> Pieces | None:
    """`body` in pieces, or None where it has too few layers or does not come apart: something other than a tensor
    would pass from one piece to another, or memory that is written in place, or a state is set for all that follows.

    Args:
        examples: of its inputs. own: which of them headforce added.
    """
    nodes = list(body.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    stretches = _stretches([node for node in nodes if node.op not in ("placeholder", "output")])
    mode = fake_mode(examples)
    if len(stretches) <= LEAST or mode is None or torch.is_grad_enabled():
        return None
    if not all(isinstance(example, Tensor) for example in examples):
        return None
    place = {node: i for i, stretch in enumerate(stretches) for node in stretch}
    ours = {node for node, is_own in zip(inputs, own, strict=True) if is_own}
    if not all(map(_separable, place)) or not _writes_stay(body.graph, place, ours):
        return None
    found = _Values(body)
    with mode:  # examples are of Dynamo's own mode, but for those of added inputs
        found.run(*[torch.empty_strided(e.shape, e.stride(), dtype=e.dtype, device=e.device) for e in examples])
    values = found.values | dict(zip(inputs, examples, strict=True))
    return _cut(stretches, inputs, ours, values, nodes[-1].args[0])


def _stretches(nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes between two attentions, each with the attention that ends it and with the views of its result."""
    stretches: list[list[Node]] = [[]]
    ended: set[Node] = set()
    for node in nodes:
        if ended and not (node.target in (torch.permute, torch.flatten) and set(node.all_input_nodes) <= ended):
            stretches.append([])
            ended = set()
        stretches[-1].append(node)
        if ended or node.target == torch.ops.headforce.ragged_attention.default:
            ended.add(node)
    return stretches


def _separable(node: Node) -> bool:
    """Whether a node gives something, or does something to its own operands: autocast and the like act on others."""
    ours = getattr(node.target, "namespace", "") == "headforce"
    writes = any(writes_in_place(node, operand) for operand in node.all_input_nodes)
    return node.op in ("call_function", "call_method") and (bool(node.users) or ours or writes)


def _writes_stay(graph: Graph, place: dict[Node, int], ours: set[Node]) -> bool:
    """Whether memory that is written in place is headforce's own, or known in one stretch only."""
    changed = written(graph) - ours
    if any(node.op == "placeholder" for node in changed):
        return False
    for node in place:
        for root in roots(node) & changed:
            near = {place[user] for user in node.users if user in place} | {place[node]}
            if near != {place[root]}:
                return False
    return True


class _Values(Interpreter):
    """Runs a graph on fake tensors and keeps what every node gives."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = value = super().run_node(n)
        return value


def _cut(
    stretches: Sequence[Sequence[Node]], inputs: Sequence[Node], ours: set[Node], values: dict[Node, Any], results: Any
) -> Pieces | None:
    numbers = {node: i for i, node in enumerate(inputs)}
    pieces, last = [], dict[int, int]()
    for at, stretch in enumerate(stretches):
        inside = set(stretch)
        takes = list(dict.fromkeys(o for node in stretch for o in node.all_input_nodes if o not in inside))
        gives = [node for node in stretch if any(user not in inside for user in node.users)]
        if not all(isinstance(values[node], Tensor) for node in (*takes, *gives)):
            return None
        module = _module(stretch, takes, gives, values)
        places = [numbers[node] for node in takes]
        numbers |= {node: len(numbers) + i for i, node in enumerate(gives)}
        last |= dict.fromkeys(places, at)
        pieces.append(Piece(module, [values[node] for node in takes], [node in ours for node in takes], places, []))
    returns = [numbers[node] for node in results]
    for number, at in last.items():
        if number not in returns:
            pieces[at].drops.append(number)
    return Pieces(pieces, returns)


def _module(
    stretch: Sequence[Node], takes: Sequence[Node], gives: Sequence[Node], values: dict[Node, Any]
) -> GraphModule:
    """The nodes of a stretch as a graph of their own."""
    graph, twins = Graph(), dict[Node, Node]()
    for node in takes:
        twins[node] = graph.placeholder(node.name)
        if node.op == "placeholder":
            twins[node].meta = dict(node.meta)
            copy_source(node, twins[node])
        else:
            twins[node].meta["example_value"] = values[node]
            with_source(twins[node], node.name)
    for node in stretch:
        twins[node] = graph.node_copy(node, twins.__getitem__)
    graph.output(tuple(twins[node] for node in gives))
    return GraphModule({}, graph)
