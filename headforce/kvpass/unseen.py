"""Attention that no recogniser was asked about is never missed silently.

Caches and pasts without a reader, nested graphs, and query, key and value that leave the graph.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .axes import label_dims
from .cache_uses import uses
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .ops import op_name, sequence_argument, tensor_argument
from .recognize import Refused, first
from .sources import activations, behind
from .torch_private import input_source


def is_written(view: GraphView, node: Node) -> bool:
    used = uses(view, node, ("",) * len(view.shape(node) or ()))
    return bool(used.writes or used.unknown)


def unclaimed(view: GraphView, claimed: set[Node]) -> list[tuple[Node, Refused]]:
    """Graph inputs that look like caches and that no attention call reads: never missed silently.

    Those are: four dims and written in place; five, and projections are written; three or five, and what two
    projections of one activation make of a pass (a key and a value) is written into them or joined with them by `cat`;
    four, and joined with such rows. Caches of convolutions and of whole activations are not meant.
    """
    out = []
    for node in view.placeholders:
        if node not in claimed and len(view.shape(node) or ()) == 4 and is_written(view, node):
            out.append((node, _unread(node, "writes {} but no attention call reads it here", "write")))
    free = {n for n in view.placeholders if n not in claimed and _like_a_cache(view, n)} - {node for node, _ in out}
    written, joined = _written_rows(view, free), _joined_rows(view, free)
    read = _attended(view) if written else set()  # what attention reads itself is reported with the call
    written = [(past, new) for past, new in written if not behind(view, new)[0] <= read]
    found = _of_keys_and_values(view, [*written, *joined])
    found |= {past for past, new in written if len(view.shape(past) or ()) == 5 and _projected(view, new)}
    into = {past for past, _ in written}
    for node in sorted(found, key=view.order.__getitem__):
        if node in into:
            out.append((node, _unread(node, "writes {} but no attention call reads it here", "write")))
        else:
            out.append((node, _unread(node, "joins {} with new rows but no known attention call reads them", "join")))
    return out


def _unread(node: Node, found: str, step: str) -> Refused:
    name = input_source(node) or node.name
    return Refused(
        "HF-CACHE-UNREAD",
        f"the graph {found.format(name)}",
        f"the {step} and the attention in one graph, in a known form",
    )


def _like_a_cache(view: GraphView, node: Node) -> bool:
    return 3 <= len(view.shape(node) or ()) <= 5 and not isinstance(view.tensor(node), torch.nn.Parameter)


def _written_rows(view: GraphView, inputs: set[Node]) -> list[tuple[Node, Node]]:
    """The graph inputs of three and five dims that are written in place, each with what is written."""
    return [
        (node, value)
        for node in inputs
        for writer in view.writers(node)
        for value in writer.all_input_nodes
        if view.shape(value) is not None and view.root(value) is not node
    ]


def _attended(view: GraphView) -> set[Node]:
    """The projections whose keys and values the attention calls of the graph read."""
    found = set()
    for node in view.nodes:
        with contextlib.suppress(Refused):
            call = first("attention", view, node)
            if call is not None:
                found |= behind(view, call.k.node, call.v.node)[0]
    return found


def _joined_rows(view: GraphView, inputs: set[Node]) -> list[tuple[Node, Node]]:
    """The graph inputs that are joined by `cat` with something else, each with what they are joined with."""
    found = []
    for node in view.live:
        parts = sequence_argument(node) if op_name(node) == "cat" else ()
        reached = [behind(view, part) for part in parts]
        pasts = {n for projections, given in reached if not projections for n in given & inputs}
        new = [part for part, (projections, _) in zip(parts, reached, strict=True) if projections]
        found += [(past, part) for past in pasts for part in new]
    return found


def _of_keys_and_values(view: GraphView, rows: list[tuple[Node, Node]]) -> set[Node]:
    """Those inputs that take what several projections make of one activation, as keys and values are."""
    groups: dict[frozenset[Node], list[tuple[Node, frozenset[Node]]]] = {}
    for past, new in rows:
        if _projected(view, new):
            groups.setdefault(frozenset(activations(view, new)), []).append((past, origins(view, new)))
    found = set()
    for source, group in groups.items():
        apart = {made for _, made in group}
        # Rows that are stacked or joined before come of several projections at once, and so do sums of a residual
        # stream, but not of one activation.
        if source and (len(apart) > 1 or (len(source) == 1 and len(frozenset().union(*apart)) > 1)):
            found |= {past for past, _ in group}
    return found


def _projected(view: GraphView, node: Node) -> bool:
    """Whether projections of another kind than convolutions are behind a node."""
    return any(not op_name(n).startswith("conv") for n in behind(view, node)[0])


def origins(view: GraphView, start: Node) -> frozenset[Node]:
    """The projections behind a node; where one projection is cut into a few, as a fused one of query, key and value is,
    the pieces."""
    projections = behind(view, start)[0]
    found, seen, queue = set(), {start}, [start]
    while queue:
        node = queue.pop()
        if node in projections or _is_piece(view, node, projections):
            found.add(node)
        else:
            fresh = [n for n in node.all_input_nodes if n not in seen and n.op != "placeholder"]
            seen.update(fresh)
            queue += fresh
    return frozenset(found)


_CUTS = frozenset({"getitem", "narrow", "select"})
_MOST_PIECES = 5
"""Query, key, value, a gate and an MLP's input; modulations of a block are six or more."""


def _is_piece(view: GraphView, node: Node, projections: set[Node]) -> bool:
    """Whether a node is cut out of a projection, or out of a piece of one, views looked through."""
    source = tensor_argument(node) if op_name(node) in _CUTS else None
    if source is None:
        return False
    parts = [user for user in source.users if op_name(user) in _CUTS]
    several = source.meta.get("example_value")
    if isinstance(several, (tuple, list)):  # of `chunk`, `split` or `unbind`
        parts, source = list(several), tensor_argument(source)
    shape = view.shape(source)
    if source is None or shape is None or len(parts) > _MOST_PIECES:
        return False
    *_, last = walk(Cursor(source, label_dims([str(i) for i in range(len(shape))], shape)), view)
    return last.node in projections or _is_piece(view, last.node, projections)


def handed_on(view: GraphView, attended: set[Node]) -> list[tuple[Node, Refused]]:
    """Query, key and value as outputs of the graph: three projections of one activation, or three pieces of one.

    They have heads, [B, S, H, D], or not yet, [B, S, H * D]. `attended`: projections whose keys and values attention in
    the graph reads; cross-attention hands them out for the next pass.
    """
    (output,) = view.graph.find_nodes(op="output")
    groups: dict[tuple[Any, ...], list[tuple[Node, frozenset[Node]]]] = {}
    for node in output.all_input_nodes:
        shape, projections = view.shape(node), behind(view, node)[0]
        if shape is None or len(shape) not in (3, 4) or projections <= attended:
            continue
        made = origins(view, node)
        whole = len(shape) == 4 and made <= projections
        if not any(op_name(n) == "linear" for n in projections) or (1 in shape[1:-1] and not whole):
            continue  # one row or one head: a modulation
        source = tuple(sorted(n.name for n in activations(view, node)))
        alike = (shape[0], shape[-1]) if len(shape) == 4 else ()
        groups.setdefault((*alike, source), []).append((node, made))
    found = []
    for (*_, source), group in groups.items():
        nodes = [node for node, _ in group]
        if source and len({made for _, made in group}) >= 3 and _fit(view, nodes):
            names = ", ".join(node.name for node in nodes)
            found.append((nodes[0], Refused("HF-OPAQUE", f"{names} handed out of the graph", "their attention in it")))
    return found


def _fit(view: GraphView, nodes: list[Node]) -> bool:
    """Whether there are keys and values of one width among the nodes, and a query of that width or a multiple of it."""
    widths = [(view.shape(node) or (None,))[-1] for node in nodes]
    return any(widths.count(w) >= 2 and sum(view.facts.equal(v % w, 0) for v in widths) >= 3 for w in widths)


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
