"""Rewrites of a captured graph that change no value, and a check that headforce does the same with each of them.

    check_rewrites(layer, inputs)       # every rewrite of `REWRITES` by itself, and all of them at once

A recogniser that only knows the spelling of one model fails it. Of every rewritten graph the verdict has to be that of
the graph as it was captured, and the lowered graph has to give what eager code gives, in results and caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ..kvpass.backend import headforce_backend
from ..kvpass.eligible import viewable
from ..kvpass.find import find_sites
from ..kvpass.graph_view import GraphView
from ..kvpass.normal_form import CASTS, COPIES, EXPANDS, PERMUTES, RESHAPES
from ..kvpass.ops import op_name, tensor_argument, trailing
from ..kvpass.site import SiteReport
from ..kvpass.torch_private import own_copy
from ..policy import Policy
from .inner import INNER

Rewrite = Callable[[GraphModule], int]
"""Changes a graph in place and returns in how many places."""
_FUNCTIONS = frozenset(
    {
        "transpose",
        "permute",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "softmax",
        "mul",
        "add",
        "matmul",
    }
    | {"split", "chunk", "narrow", "movedim", "clone", "repeat_interleave", "masked_fill"}
)


def commuted(module: GraphModule) -> int:
    """`b + a` and `b * a` for `a + b` and `a * b`."""
    count = 0
    for node in module.graph.nodes:
        if node.op == "call_function" and op_name(node) in ("add", "mul") and len(node.args) == 2 and not node.kwargs:
            node.args = node.args[::-1]
            count += 1
    return count


def cloned(module: GraphModule) -> int:
    """A `clone` behind whatever is not written in place."""
    return _behind_each(module, lambda graph, node: [_call(graph, "clone", node)])


def contiguous(module: GraphModule) -> int:
    """A `contiguous` behind whatever is not written in place."""
    return _behind_each(module, lambda graph, node: [_call(graph, "contiguous", node)])


def widened(module: GraphModule) -> int:
    """A cast to a wider dtype and back behind every real tensor that is not written in place."""

    def casts(graph: Graph, node: Node) -> list[Node]:
        dtype = node.meta["example_value"].dtype
        if not dtype.is_floating_point or dtype == torch.float64:
            return []
        wide = _call(graph, "to", node, torch.float64)
        return [wide, _call(graph, "to", wide, dtype)]

    return _behind_each(module, casts)


def permuted(module: GraphModule) -> int:
    """`permute` for `transpose` of two dims."""
    count = 0
    for node in list(module.graph.nodes):
        dims = trailing(node, "dim0", "dim1") if op_name(node) == "transpose" else ()
        if len(dims) == 2 and all(isinstance(dim, int) for dim in dims):
            order = list(range(node.meta["example_value"].dim()))
            a, b = dims
            order[a], order[b] = order[b], order[a]
            _instead(module.graph, node, lambda graph, source, order=order: _call(graph, "permute", source, *order))
            count += 1
    return count


def summed(module: GraphModule) -> int:
    """`einsum` for `matmul`, `@` and `bmm`."""
    count = 0
    for node in list(module.graph.nodes):
        if op_name(node) not in ("matmul", "bmm", "__matmul__") or len(node.args) != 2:
            continue
        ranks = [operand.meta["example_value"].dim() for operand in node.args]
        if ranks in ([3, 3], [4, 4]):
            shared = "xy"[: ranks[0] - 2]
            equation = f"{shared}ik,{shared}kj->{shared}ij"
            with module.graph.inserting_before(node):
                new = module.graph.call_function(torch.functional.einsum, (equation, *node.args))
            _take_over(node, new)
            count += 1
    return count


def reshaped(module: GraphModule) -> int:
    """A detour through one long axis for `view` and `reshape` of what is contiguous."""
    count = 0
    for node in list(module.graph.nodes):
        source = tensor_argument(node)
        if node.op != "call_method" or node.target not in ("view", "reshape") or source is None:
            continue
        if any(isinstance(arg, torch.dtype) for arg in node.args) or GraphView(module).writers(node):
            continue
        sizes = node.args[1:]

        def detour(graph: Graph, source: Node, sizes: tuple[Any, ...] = sizes) -> Node:
            return _call(graph, "reshape", _call(graph, "reshape", source, -1), *sizes)

        _instead(module.graph, node, detour)
        count += 1
    return count


def functions(module: GraphModule) -> int:
    """`torch.f(x, ...)` for `x.f(...)`."""
    count = 0
    for node in module.graph.nodes:
        if node.op == "call_method" and node.target in _FUNCTIONS and hasattr(torch, node.target):
            if node.target in ("reshape", "permute"):
                node.args = (node.args[0], trailing(node))
            node.op, node.target = "call_function", getattr(torch, node.target)
            count += 1
    return count


REWRITES: dict[str, Rewrite] = {
    f.__name__: f for f in (commuted, cloned, contiguous, widened, permuted, summed, reshaped, functions)
}


def everything(module: GraphModule) -> int:
    """All rewrites, one after the other."""
    return sum(rewrite(module) for rewrite in REWRITES.values())


def check_rewrites(layer: nn.Module, inputs: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Compiles a layer in view mode under `native()`, and with it every rewrite of its graphs, and compares.

    Args:
        layer: called with caches that keep K and V under the keys "k" and "v", as in `zoo`.
        inputs: the arguments of each call.

    Returns in how many places each rewrite was applied. AssertionError if a verdict or a result differs.
    """
    places = dict.fromkeys((*REWRITES, "everything"), 0)

    def backend(module: GraphModule, examples: list[Any]) -> Callable[..., Any]:
        expected = verdict(viewable(find_sites(own_copy(module), examples)))
        variants: dict[str, Callable[..., Any]] = {}
        for name, rewrite in (*REWRITES.items(), ("everything", everything)):
            other = own_copy(module)
            places[name] += rewrite(other)
            other.graph.lint()
            other.recompile()
            got = verdict(viewable(find_sites(other, examples)))
            assert got == expected, f"{name}: {got}, where the graph as it was captured is {expected}"
            options = {"policy": Policy({}), "inner": INNER.name, "on_refuse": "warn"}
            variants[name] = headforce_backend(other, examples, options=options)

        def run(*args: Any) -> Any:
            taken = {name: [a.clone() if isinstance(a, Tensor) else a for a in args] for name in variants}
            results = module.forward(*args)
            for name, variant in variants.items():
                before = INNER.launches
                own = variant(*taken[name])
                assert INNER.launches - before == len(expected[0]), f"{name}: sites that were not launched"
                for ours, theirs in zip((*own, *taken[name]), (*results, *args), strict=True):
                    if isinstance(ours, Tensor):
                        torch.testing.assert_close(
                            ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                        )
            return results

        return run

    with torch.no_grad():
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        for args in inputs:
            compiled(*args)
    return places


def verdict(report: SiteReport) -> tuple[list[Any], list[str], list[str]]:
    """What a report says apart from nodes: facts of the sites found, codes of those refused and excluded."""
    found = [
        (
            (site.heads, site.kv_heads, site.head_dim, round(site.scale, 6), round(site.key_scale, 6)),
            (site.mask, site.cache.kind, site.cache.append, site.cache.segments, site.cache.keys_rotated),
            None
            if site.rope is None
            else (site.rope.kind, site.rope.query_start, site.rope.key_start, site.rope.grid, site.rope.temporal),
        )
        for site in report.found
    ]
    return found, [refusal.code for refusal in report.refused], [refusal.code for refusal in report.excluded]


def _behind_each(module: GraphModule, made: Callable[[Graph, Node], list[Node]]) -> int:
    """Puts nodes behind every tensor that is made by views, casts and arithmetic, and that nobody writes."""
    view, count = GraphView(module), 0
    names = RESHAPES | PERMUTES | CASTS | EXPANDS | COPIES | {"add", "mul", "matmul", "softmax", "stack", "linear"}
    for node in view.nodes:
        tensor = node.meta.get("example_value")
        if op_name(node) not in names or not isinstance(tensor, Tensor) or view.writers(node) or not node.users:
            continue
        users = list(node.users)
        with module.graph.inserting_after(node):
            new: list[Node] = []
            for one in made(module.graph, node):
                new.append(one)
        for user in users if new else ():
            user.replace_input_with(node, new[-1])
            count += 1
    return count


def _call(graph: Graph, method: str, source: Node, *args: Any) -> Node:
    """A call of a method, with the example value that it has."""
    at = source.next if source.op == "placeholder" else source
    with graph.inserting_after(source) if at is source else graph.inserting_before(at):
        node = graph.call_method(method, (source, *args))
    values = torch.fx.node.map_arg(args, lambda n: n.meta["example_value"])
    node.meta = {**source.meta, "example_value": getattr(source.meta["example_value"], method)(*values)}
    return node


def _instead(graph: Graph, node: Node, made: Callable[[Graph, Node], Node]) -> None:
    source = tensor_argument(node)
    assert source is not None
    with graph.inserting_before(node):
        new = made(graph, source)
    _take_over(node, new)


def _take_over(node: Node, new: Node) -> None:
    new.meta = {**node.meta, "example_value": new.meta.get("example_value", node.meta["example_value"])}
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
