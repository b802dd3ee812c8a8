"""A graph to ask questions of: shapes as expressions, order, users, inputs. It never changes the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import networkx as nx
import sympy
import torch
from torch.fx import GraphModule, Node

from . import torch_private
from .ops import ALIASING, CASTS, live_nodes, makes_new, op_name, tensor_argument, writes_in_place
from .symbolic import Binder, Facts, to_expr

_PLAIN = (bool, int, float, str, torch.SymInt, torch.SymFloat, torch.SymBool, torch.dtype, torch.device)
"""What has no memory that could be written."""


class GraphView:
    """What the recognisers know about one Dynamo graph.

    Args:
        graph_module: the graph, with `example_value` on its nodes as Dynamo leaves it.
        example_inputs: what Dynamo gave the backend.
    """

    def __init__(self, graph_module: GraphModule, example_inputs: Sequence[Any] = ()) -> None:
        self.module = graph_module
        self.graph = graph_module.graph
        self.nodes: list[Node] = list(self.graph.nodes)
        self.order: dict[Node, int] = {node: i for i, node in enumerate(self.nodes)}
        self.placeholders: list[Node] = [n for n in self.nodes if n.op == "placeholder"]
        self.input_index: dict[Node, int] = {n: i for i, n in enumerate(self.placeholders)}
        values = [n.meta.get("example_value") for n in self.placeholders]
        self.env = torch_private.shape_env([*example_inputs, *values])
        self.facts = Facts(torch_private.guard_expressions(self.env), torch_private.symbol_ranges(self.env))
        self.binder = Binder(self.placeholders)
        self.constants: dict[int, dict[Node, Any]] = {}  # what `constants.constant` has found, by the time of the use
        self.tables: dict[Any, Any] = {}  # what `recognize.rope` has read of RoPE tables, which layers share
        self._roots: dict[Node, Node] = {}
        self._shapes: dict[Node, tuple[sympy.Expr, ...] | None] = {}

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The data flow: an edge from each node to each of its users, and from a write to who reads the memory later.

        Writes into graph inputs are left out: caches are looked at as such.
        """
        graph = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((node, user) for node in self.nodes for user in node.users)
        for node in self.nodes:
            for source in node.all_input_nodes:
                writers = self.writers(source) if self.root(source).op != "placeholder" else []
                graph.add_edges_from((writer, node) for writer in writers if self.order[writer] < self.order[node])
        return graph

    @cached_property
    def live(self) -> set[Node]:
        """The nodes on which something depends."""
        return live_nodes(self.graph)

    def users(self, node: Node) -> list[Node]:
        """Who reads a node, without readers on which nothing depends."""
        return [user for user in node.users if user in self.live]

    def tensor(self, node: Any) -> torch.Tensor | None:
        """The example tensor of a node, or None."""
        value = node.meta.get("example_value") if isinstance(node, Node) else None
        return value if isinstance(value, torch.Tensor) else None

    def shape(self, node: Any) -> tuple[sympy.Expr, ...] | None:
        """The sizes of a tensor node as expressions, or None."""
        if node not in self._shapes:
            tensor = self.tensor(node)
            self._shapes[node] = None if tensor is None else tuple(self.expr(s) for s in tensor.shape)
        return self._shapes[node]

    def expr(self, value: Any) -> sympy.Expr | None:
        """An int, SymInt or integer-valued node as an expression, with what guards have fixed put in; None for
        others."""
        expr = to_expr(value)
        return None if expr is None else self.facts.simplify(expr)

    def dtype(self, node: Any) -> torch.dtype | None:
        """The dtype of a tensor node, or None."""
        tensor = self.tensor(node)
        return None if tensor is None else tensor.dtype

    def ensure(self, relation: sympy.Basic) -> bool:
        """Whether `a <= b` or `a == b` holds: by proof, or by a guard that is added where there is none.

        Dynamo checks its guards before each call; what this returns True for holds whenever the graph runs. Only for
        conditions on sizes that a model meets without saying so (a chunk fits into its window), not for its structure.
        """
        a, b = relation.args if relation not in (sympy.true, sympy.false) else (None, None)
        prove = self.facts.equal if isinstance(relation, sympy.Eq) else self.facts.le
        if relation is sympy.true or (a is not None and prove(a, b)):
            return True
        if a is None or not torch_private.guard(self.env, relation):
            return False
        self.facts.assume(relation)
        return True

    def decided(self, value: Any) -> sympy.Expr | None:
        """`expr(value)` with every Max and Min replaced by the side that it is now, which becomes a guard."""
        expr = self.expr(value)
        while expr is not None:
            choices = expr.atoms(*torch_private.MAX_CLASSES, *torch_private.MIN_CLASSES)
            inner = next((c for c in choices if not any(c.has(o) for o in choices - {c})), None)
            if inner is None:
                break
            largest = isinstance(inner, torch_private.MAX_CLASSES)
            # Of sides that are equal now, the one that varies: what is a number now may be the other side's start.
            sides = sorted(inner.args, key=lambda side: bool(side.is_number))
            picked = next((a for a in sides if all(self._ordered(a, o, largest) for o in sides)), None)
            if picked is None:
                break
            expr = sympy.expand(expr.xreplace({inner: picked}))
        return expr

    def _ordered(self, a: sympy.Expr, b: sympy.Expr, descending: bool) -> bool:
        return a == b or self.ensure(sympy.Le(b, a) if descending else sympy.Le(a, b))

    def aliases(self, node: Node, source: Node) -> bool:
        """Whether `node` is a view of `source`, or may be one."""
        if tensor_argument(node) is not source:
            return False
        if op_name(node) in ALIASING:
            before, after = self.dtype(source), self.dtype(node)
            return op_name(node) not in CASTS or before is None or after is None or before == after
        return writes_in_place(node, source)  # x.mul_(2) returns x

    def root(self, node: Node) -> Node:
        """The node whose memory `node` is a view of; the node itself if it has memory of its own."""
        passed = []
        while node not in self._roots:
            source = tensor_argument(node) if node.op in ("call_function", "call_method") else None
            if source is None or not self.aliases(node, source):
                self._roots[node] = node
                break
            passed.append(node)
            node = source
        root = self._roots[node]
        self._roots.update(dict.fromkeys(passed, root))
        return root

    def _shared(self, node: Node) -> list[Node]:
        """The operands whose memory a node hands on, or may hand on: all of them for an operation that nobody knows."""
        if node.op in ("placeholder", "get_attr", "output") or not _may_be_tensor(node.meta.get("example_value", node)):
            return []
        written = [operand for operand in node.all_input_nodes if writes_in_place(node, operand)]
        source = tensor_argument(node)
        if written or makes_new(node):
            return written
        if op_name(node) not in ALIASING or source is None:
            return node.all_input_nodes
        return [source] if self.aliases(node, source) else []

    @cached_property
    def _memory(self) -> dict[Node, Node]:
        """For each node one of those whose memory may be the same as its own: equal for two that may share."""
        found: dict[Node, Node] = {}

        def first(node: Node) -> Node:
            while found[node] is not node:
                found[node] = node = found[found[node]]
            return node

        for node in self.nodes:
            found[node] = node
            for operand in self._shared(node):
                found[first(node)] = first(operand)
        return {node: first(node) for node in self.nodes}

    @cached_property
    def _writers(self) -> dict[Node, list[Node]]:
        writers: dict[Node, list[Node]] = {}
        for node in self.nodes:
            changed = [operand for operand in node.all_input_nodes if writes_in_place(node, operand)]
            for memory in dict.fromkeys(self._memory[operand] for operand in changed):
                writers.setdefault(memory, []).append(node)
        return writers

    def writers(self, node: Node) -> list[Node]:
        """The nodes that change the memory of `node`, or may, in graph order; through whatever view they do it.

        Whether an operation hands out views is not always known (`x.data`, `x.cpu()`, a function of somebody's): then
        a write into its result counts as one into its operands, and the other way round.
        """
        return self._writers.get(self._memory[node], [])

    def written_after(self, node: Node) -> bool:
        """Whether the memory of `node` is changed after `node` is made: its value then depends on when it is read."""
        return any(self.order[writer] > self.order[node] for writer in self.writers(node))

    def region(self, starts: Iterable[Node], end: Node) -> set[Node]:
        """`starts` and every node on a path from one of them to `end`, without `end`."""
        starts, last = set(starts), self.order[end]
        # Every edge leads to a later node: of a long graph only the stretch in front of `end` is looked at.
        near = _reached(starts, self.digraph.succ, lambda node: self.order[node] < last)
        return (_reached({end}, self.digraph.pred, near.__contains__) - {end}) | starts


def _may_be_tensor(value: Any) -> bool:
    """Whether an example value is a tensor, holds one, or is nothing that is known."""
    if isinstance(value, (tuple, list)):
        return any(_may_be_tensor(part) for part in value)
    return value is not None and not isinstance(value, _PLAIN)


def _reached(starts: set[Node], edges: Mapping[Node, Iterable[Node]], allowed: Callable[[Node], bool]) -> set[Node]:
    """`starts` and all that can be reached from them through nodes that are allowed."""
    found, queue = set(starts), list(starts)
    while queue:
        fresh = [node for node in edges[queue.pop()] if node not in found and allowed(node)]
        found.update(fresh)
        queue += fresh
    return found
