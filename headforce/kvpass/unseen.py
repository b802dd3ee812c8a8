"""Attention that no recogniser was asked about: caches without a reader, and nested graphs. Never missed silently."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from .cache_uses import uses
from .graph_view import GraphView
from .recognize import Refused, first
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
