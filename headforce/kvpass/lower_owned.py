"""Lowering to owned pools: the model's cache writes, rolls and reads are deleted, and K and V live in our pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..kernels.reference import READ_FIELDS, RUN_FIELDS
from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from ..lowering import ops  # noqa: F401  registers the operators
from .graph_inputs import AddedInputs
from .site import Operand, Site

LAYOUT = ("batch", "seq", "head", "dim")
STYLES = {"complex": INTERLEAVED, "interleaved": INTERLEAVED, "split_half": SPLIT_HALF}


@dataclass(frozen=True)
class Lowered:
    """A lowered graph. Its inputs are the model's, then (k_pool, v_pool, theta), then (reads, runs, pages) per site."""

    module: GraphModule
    examples: list[Any]


def lower_owned(
    module: GraphModule, example_inputs: Sequence[Any], sites: Sequence[Site], target: str, device: torch.device
) -> Lowered:
    """Rewrites `module`, a copy that nobody else uses, so that every site writes and reads pages."""
    added = AddedInputs(module, example_inputs)
    first = sites[0]
    rows = 16  # of an example page; every size that a policy or a model can change is symbolic
    k_pool = added.add("hf_k_pool", (24, rows, first.head_dim), first.cache.dtype, device, (0, 1))
    v_pool = added.add("hf_v_pool", (24, rows, first.value_dim), first.cache.dtype, device, (0, 1))
    theta = added.add("hf_theta", (8,), torch.float64, device, (0,))
    for i, site in enumerate(sites):
        tables = (
            added.add(f"hf_reads_{i}", (8, len(READ_FIELDS)), torch.int32, device, (0,)),
            added.add(f"hf_runs_{i}", (12, len(RUN_FIELDS)), torch.int32, device, (0,)),
            added.add(f"hf_pages_{i}", (10, 6), torch.int64, device, (0, 1)),
        )
        _rewrite(module.graph, site, (k_pool, v_pool, theta), tables, target)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return Lowered(module, added.examples)


def _rewrite(graph: Graph, site: Site, pools: Sequence[Node], tables: Sequence[Node], target: str) -> None:
    k_pool, v_pool, theta = pools
    reads, runs, pages = tables
    with graph.inserting_before(site.node):
        key = _arranged(graph, site.new_key, site.cache.dtype)
        value = _arranged(graph, site.new_value, site.cache.dtype)
        graph.call_function(torch.ops.headforce.write_pages.default, (key, value, k_pool, v_pool, pages))
        query = _arranged(graph, site.query, site.dtype)
        first_pair, style = rotated_pairs(site)
        attention = graph.call_function(
            torch.ops.headforce.ragged_attention.default,
            (query, k_pool, v_pool, reads, runs, theta, first_pair, style, site.scale, target),
        )
        result = graph.call_method("permute", (attention, *(LAYOUT.index(axis) for axis in site.layout)))
    result.meta = dict(site.node.meta)
    site.node.replace_all_uses_with(result)
    graph.erase_node(site.node)
    # A write to the cache is an effect, which dead code elimination would keep. Later nodes use earlier ones.
    for node in reversed((*site.cache.roll_nodes, *site.cache.write_nodes)):
        if not node.users:
            graph.erase_node(node)


def rotated_pairs(site: Site) -> tuple[int, str]:
    """The first pair that turns with the frame, and how pairs lie in the head dim."""
    if site.rope is None or site.rope.temporal is None:
        return 0, INTERLEAVED
    return site.rope.temporal[0], STYLES[site.rope.kind]


def _arranged(graph: Graph, operand: Operand, dtype: torch.dtype) -> Node:
    """The operand as [B, S, H, D] in `dtype`."""
    node = operand.node
    if operand.layout != LAYOUT:
        node = graph.call_method("permute", (node, *operand.order(LAYOUT)))
    return node if operand.dtype == dtype else graph.call_method("to", (node, dtype))
