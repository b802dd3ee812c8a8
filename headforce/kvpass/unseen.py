"""Attention that no recogniser was asked about is never missed silently.

Caches without a reader, nested graphs, and query, key and value that leave the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from .cache_uses import uses
from .graph_view import GraphView
from .ops import op_name
from .recognize import Refused, first
from .sources import activations, behind
from .torch_private import input_source


def is_written(view: GraphView, node: Node) -> bool:
    used = uses(view, node, ("",) * len(view.shape(node) or ()))
    return bool(used.writes or used.unknown)


def unclaimed(view: GraphView, claimed: set[Node]) -> list[tuple[Node, Refused]]:
    """Graph inputs that look like caches (written in place, four dims) and that no attention call reads: never missed
    silently."""
    out = []
    for node in view.placeholders:
        if node not in claimed and len(view.shape(node) or ()) == 4 and is_written(view, node):
            out.append(
                (
                    node,
                    Refused(
                        "HF-CACHE-UNREAD",
                        f"the graph writes {input_source(node) or node.name} but no attention call reads it here",
                        "the write and the attention in one graph, in a known form",
                    ),
                )
            )
    return out


def handed_on(view: GraphView, attended: set[Node]) -> list[tuple[Node, Refused]]:
    """Query, key and value as outputs of the graph: three projections of one activation, with heads [B, S, H, D].

    `attended`: projections whose keys and values attention in the graph reads; cross-attention hands them out for the
    next pass.
    """
    (output,) = view.graph.find_nodes(op="output")
    groups: dict[tuple[Any, ...], list[Node]] = {}
    for node in output.all_input_nodes:
        shape = view.shape(node)
        if shape is not None and len(shape) == 4 and not behind(view, node)[0] <= attended:
            source = tuple(sorted(n.name for n in activations(view, node)))
            groups.setdefault((shape[0], shape[-1], source), []).append(node)
    found = []
    for (_, _, source), nodes in groups.items():
        projections = behind(view, *nodes)[0]
        if source and len(nodes) >= 3 and len({n for n in projections if op_name(n) == "linear"}) >= 3:
            names = ", ".join(node.name for node in nodes)
            found.append((nodes[0], Refused("HF-OPAQUE", f"{names} handed out of the graph", "their attention in it")))
    return found


def nested(view: GraphView) -> list[tuple[Node, Refused]]:
    """Attention inside a nested graph (checkpointing, cond) is reported, not searched."""
    out = []
    for node in view.nodes:
        inner = (
            view.module.get_submodule(str(node.target)) if node.op == "get_attr" and _is_module(view, node) else None
        )
        if isinstance(inner, GraphModule) and any(_is_attention(inner, n) for n in inner.graph.nodes):
            out.append(
                (
                    node,
                    Refused(
                        "HF-NESTED",
                        f"attention inside the nested graph {node.target}",
                        "attention in the outer graph (no checkpointing, no cond)",
                    ),
                )
            )
    return out


def _is_module(view: GraphView, node: Node) -> bool:
    owner: Any = view.module
    for part in str(node.target).split("."):
        owner = getattr(owner, part, None)
    return isinstance(owner, torch.nn.Module)


def _is_attention(module: GraphModule, node: Node) -> bool:
    try:
        return first("attention", GraphView(module), node) is not None
    except Refused:
        return True
