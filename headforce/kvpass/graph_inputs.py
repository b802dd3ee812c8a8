"""Graph inputs that a rewrite adds: pools and tables, appended after the model's own inputs.

Their first sizes differ between policies and models, so those are symbolic: one compiled graph serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .torch_private import symbolic_fake, with_source


class AddedInputs:
    """Appends inputs to a graph, with the example values that a compiler wants to see.

    Args:
        module: the graph, which is changed.
        example_inputs: what Dynamo gave the backend with it.

    Attributes:
        nodes: the inputs that were added. examples: the example values of all inputs.
    """

    def __init__(self, module: GraphModule, example_inputs: Sequence[Any]) -> None:
        self.module = module
        self.nodes: list[Node] = []
        self.examples = list(example_inputs)
        self._last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]

    def add(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        dynamic: Sequence[int],
        strides: Sequence[int] | None = None,
    ) -> Node:
        """A new input. Its dims in `dynamic` may have any size; give them an example size other than 0 and 1."""
        like = torch.empty(tuple(shape), dtype=dtype, device=device)
        if strides is not None:
            like = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=device)
        return self._append(name, symbolic_fake(like, name, dynamic, self.examples))

    def add_alike(self, name: str, node: Node) -> Node:
        """A new input that has the shape of `node`, an added input, in every call: of the same symbols, since to make
        others takes torch milliseconds for each."""
        return self._append(name, torch.empty_like(node.meta["example_value"]))

    def _append(self, name: str, value: torch.Tensor) -> Node:
        graph = self.module.graph
        with graph.inserting_after(self._last):
            node = graph.placeholder(name)
        node.meta["example_value"] = value
        with_source(node, name)
        self.examples.append(value)
        self.nodes.append(node)
        self._last = node
        return node
