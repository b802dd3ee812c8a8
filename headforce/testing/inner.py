"""An inner compiler for tests: it runs a graph as it is and counts what headforce put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from ..lowering import ops  # noqa: F401  registers the operators


class Inner:
    """The backend `name`: `options={"inner": INNER.name}`.

    Attributes:
        launches: how often ragged attention ran, in all graphs so far.
    """

    name = "headforce_testing"

    def __init__(self) -> None:
        self.launches = 0
        torch._dynamo.register_backend(lambda module, examples, **_: self.compile(module, examples), name=self.name)

    def compile(self, module: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        """What torch calls."""
        operator = torch.ops.headforce.ragged_attention.default
        count = sum(node.target is operator for node in module.graph.nodes)

        def run(*args: Any) -> Any:
            self.launches += count
            return module.forward(*args)

        return run


INNER = Inner()
