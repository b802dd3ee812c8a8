"""A body cut behind every attention, so that what the layers of a model repeat is compiled once.

Compilers take their time by the node, and a model of thirty layers is one layer thirty times. Attention is an operator
that nothing is fused with, so no kernel is lost by a cut behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from .ops import live_nodes, writes_in_place
from .torch_private import copy_source, fake_mode, graph_module, is_plain_fake, with_source

LEAST = 3
"""Attentions of a body that is cut: with fewer nothing lies between two of them twice."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a body.

    Attributes:
        module: takes values of the body, and gives others. examples: of what it takes. strides: of what it gives.
        own: of what it takes, which are inputs that headforce added.
        takes: their numbers; the inputs of the body come first, then what pieces give, in order.
        drops: numbers of the values that nothing takes after it.
    """

    module: GraphModule
    examples: list[Any]
    strides: list[tuple[int, ...]]
    own: list[bool]
    takes: list[int]
    drops: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Pieces:
    """A body in pieces. `returns`: the numbers of the values that it gives."""

    pieces: list[Piece]
    returns: list[int]

    def joined(self, compiled: Sequence[Callable[..., Sequence[Any]]]) -> Callable[..., Sequence[Any]]:
        """The body again: one function after the other, each made of the piece at its place."""
        steps = [_Step(piece, function) for piece, function in zip(self.pieces, compiled, strict=True)]
        returns = self.returns

        def run(*args: Any) -> list[Any]:
            values = list(args)
            for step in steps:
                step(values)
            return [values[i] for i in returns]

        return run


class _Step:
    """A compiled piece at its place."""

    def __init__(self, piece: Piece, function: Callable[..., Sequence[Any]]) -> None:
        self._piece, self._function = piece, function
        self._odd: list[int] | None = None

    def __call__(self, values: list[Any]) -> None:
        piece = self._piece
        results = list(self._function(*[values[i] for i in piece.takes]))
        if self._odd is None:  # compilers promise strides, and do not always keep that
            laid_out = zip(results, piece.strides, strict=True)
            self._odd = [i for i, (result, strides) in enumerate(laid_out) if not _has_strides(result, strides)]
        for i in self._odd:
            results[i] = results[i].new_empty_strided(results[i].shape, piece.strides[i]).copy_(results[i])
        values += results
        for i in piece.drops:
            values[i] = None


def in_pieces(body: GraphModule, examples: Sequence[Any], own: Sequence[bool]) -> Pieces | None:
    """`body` in pieces, or None where it has too few layers or does not come apart: something other than a tensor
    would pass from one piece to another, or memory that is written in place, or a state is set for all that follows.

    Args:
        examples: of its inputs. own: which of them headforce added.
    """
    live = live_nodes(body.graph)
    nodes = [node for node in body.graph.nodes if node.op == "placeholder" or node in live]
    inputs = [node for node in nodes if node.op == "placeholder"]
    inner = [node for node in nodes if node.op not in ("placeholder", "output")]
    mode = fake_mode(examples)
    if sum(map(_is_attention, inner)) < LEAST or mode is None or torch.is_grad_enabled():
        return None
    if not all(map(_plain, examples, own)) or not all(map(_separable, inner)):
        return None
    with mode:  # examples are of Dynamo's own mode, but for those of added inputs
        values = [torch.empty_strided(e.shape, e.stride(), dtype=e.dtype, device=e.device) for e in examples]
        cutting = _Cutting(inputs, list(examples), list(own), values)
        for stretch in _stretches(inner):
            if not cutting.add(stretch):
                return None
    return cutting.pieces(nodes[-1].args[0]) if cutting.writes_stay() else None


def _is_attention(node: Node) -> bool:
    return node.target is torch.ops.headforce.ragged_attention.default


def _plain(example: Any, own: bool) -> bool:
    """Whether shape, strides, dtype and device are all there is to an example, and its sizes are numbers unless it is
    headforce's own."""
    if not is_plain_fake(example) or example.layout != torch.strided or example.is_conj() or example.is_neg():
        return False
    return own or _static(example)


def _static(value: Tensor) -> bool:
    """Nobody asks for the stride of a dim of size 1: the batch row of a slice of the noise has that of all frames."""
    strides = (stride for size, stride in zip(value.shape, value.stride(), strict=True) if size != 1)
    return all(isinstance(number, int) for number in (*value.shape, *strides))


def _separable(node: Node) -> bool:
    """Whether a node gives something, or does something to its own operands: autocast and the like act on others."""
    ours = getattr(node.target, "namespace", "") == "headforce"
    writes = any(writes_in_place(node, operand) for operand in node.all_input_nodes)
    gives = bool(node.users) or isinstance(node.meta.get("example_value"), Tensor)
    known = gives or ours or writes or node.target is torch._assert_async
    return node.op in ("call_function", "call_method") and known


def _stretches(nodes: Sequence[Node]) -> list[list[Node]]:
    """What stands in front of the first attention, between two, and behind the last, attention with what it ends."""
    stretches: list[list[Node]] = [[]]
    for node in nodes:
        stretches[-1].append(node)
        if _is_attention(node):
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


class _Values(Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = value = super().run_node(n)
        return value


class _Cutting:
    """Makes pieces, and runs each on fake tensors when it is made: the next one's examples are what it will see.

    Args:
        inputs: of the body. examples, own: of these. values: fake tensors like them, of one mode.
    """

    def __init__(self, inputs: list[Node], examples: list[Any], own: list[bool], values: list[Tensor]) -> None:
        self._examples = dict(zip(inputs, examples, strict=True))
        self._own = {node for node, is_own in zip(inputs, own, strict=True) if is_own}
        self._passed: dict[Node, Any] = dict(zip(inputs, values, strict=True))
        self._numbers = {node: i for i, node in enumerate(inputs)}
        self._pieces: list[Piece] = []
        self._last: dict[int, int] = {}  # number of a value -> the piece that takes it last
        # What is known of memory: it lives as long as the values, so that no address is given twice.
        self._values = list(values)
        self._input_storages = {_storage(value) for node, value in self._passed.items() if node not in self._own}
        self._same: dict[int, int] = {}  # storage of a copy -> storage of what it was copied from
        self._known: dict[int, set[int]] = {}  # storage -> the stretches that know it
        self._written: set[int] = set()

    def add(self, stretch: Sequence[Node]) -> bool:
        """The next piece; whether it is one."""
        inside, at = set(stretch), len(self._pieces)
        takes = list(dict.fromkeys(o for node in stretch for o in node.all_input_nodes if o not in inside))
        gives = [node for node in stretch if any(user not in inside for user in node.users)]
        given = [self._passed[node] for node in takes]
        if not all(isinstance(value, Tensor) for value in given):
            return False
        module, twins = self._module(stretch, takes, gives)
        run = _Values(module)
        run.run(*given)
        values = {node: run.values[twin] for node, twin in twins.items()}
        if not all(isinstance(values[node], Tensor) and _static(values[node]) for node in gives):
            return False
        self._note(stretch, values, at)
        (output,) = module.graph.find_nodes(op="output")
        results = list(output.args[0])
        for i, node in enumerate(gives):
            value = values[node]
            if _permuted(value):
                # Eager keeps an order of dims once it has it, for all layers. Left to itself a compiler would not.
                with module.graph.inserting_before(output):
                    layout = {"memory_format": torch.contiguous_format}
                    results[i] = module.graph.call_function(torch.clone, (results[i],), layout)
                copy = value.clone(memory_format=torch.contiguous_format)
                self._same[_storage(copy)] = self._origin(value)
                self._values.append(copy)
                value = copy
            self._passed[node] = value
        output.args = (tuple(results),)
        module.recompile()
        places = [self._numbers[node] for node in takes]
        self._numbers |= {node: len(self._numbers) + i for i, node in enumerate(gives)}
        self._last |= dict.fromkeys(places, at)
        examples = [self._examples.get(node, self._passed[node]) for node in takes]
        strides = [self._passed[node].stride() for node in gives]
        self._pieces.append(Piece(module, examples, strides, [node in self._own for node in takes], places))
        return True

    def _module(
        self, stretch: Sequence[Node], takes: Sequence[Node], gives: Sequence[Node]
    ) -> tuple[GraphModule, dict[Node, Node]]:
        """The nodes of a stretch as a graph of their own, and their twins in it."""
        graph, twins = Graph(), dict[Node, Node]()
        for node in takes:
            twin = twins[node] = graph.placeholder(node.name)
            if node.op == "placeholder":
                twin.meta = dict(node.meta)
                copy_source(node, twin)
            else:
                twin.meta["example_value"] = self._passed[node]
                with_source(twin, node.name)
        for node in stretch:
            twins[node] = graph.node_copy(node, twins.__getitem__)
        graph.output(tuple(twins[node] for node in gives))
        return graph_module({}, graph), twins

    def _note(self, stretch: Sequence[Node], values: dict[Node, Any], at: int) -> None:
        """Which memory a stretch knows, and which it writes."""
        for node in values:
            for tensor in _tensors(values[node]):
                self._values.append(tensor)
                self._known.setdefault(self._origin(tensor), set()).add(at)
        for node in stretch:
            for operand in node.all_input_nodes:
                if operand not in self._own and writes_in_place(node, operand):
                    self._written |= {self._origin(tensor) for tensor in _tensors(values[operand])}

    def _origin(self, tensor: Tensor) -> int:
        storage = _storage(tensor)
        return self._same.get(storage, storage)

    def writes_stay(self) -> bool:
        """Whether memory that is written in place is headforce's own, or known in one stretch only."""
        return not self._written & self._input_storages and all(len(self._known[s]) == 1 for s in self._written)

    def pieces(self, results: Sequence[Node]) -> Pieces:
        returns = [self._numbers[node] for node in results]
        for number, at in self._last.items():
            if number not in returns:
                self._pieces[at].drops.append(number)
        return Pieces(self._pieces, returns)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _permuted(value: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps, but in another order of dims than its own."""
    dims = sorted((d for d in range(value.dim()) if value.shape[d] > 1), key=lambda d: -value.stride(d))
    step = 1
    for dim in reversed(dims):
        if value.stride(dim) != step:
            return False
        step *= value.shape[dim]
    return not value.is_contiguous()


def _has_strides(tensor: Tensor, strides: Sequence[int]) -> bool:
    return all(
        size == 1 or own == other for size, own, other in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )
