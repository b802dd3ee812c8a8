"""Lowering a graph: every site becomes one ragged attention.

Owned: the model's cache writes, rolls and reads are deleted, and K and V live in our pages. View: all of them stay, and
attention reads the operands that the model made for its own, of which the tables name only the rows that are kept.
The attention of a prefill reads no past and stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..errors import HeadforceError
from ..kernels.reference import READ_FIELDS, RUN_FIELDS
from ..lowering import ops  # noqa: F401  registers the operators
from ..lowering.targets import fuses_rope
from .graph_inputs import AddedInputs
from .ops import op_name, writes_in_place
from .products import PRODUCTS
from .rope_factors import turn_of
from .rope_rates import rotated_pairs, style_of
from .site import PREFILL, Operand, Site
from .structure import check_probed, check_structure

MOST_SITES = "HEADFORCE_MAX_SITES"

LAYOUT = ("batch", "seq", "head", "dim")


@dataclass(frozen=True)
class Lowered:
    """A lowered graph. Its inputs are the model's, then those that `Caches.inputs` gives."""

    module: GraphModule
    examples: list[Any]


def lower_owned(
    module: GraphModule,
    example_inputs: Sequence[Any],
    sites: Sequence[Site],
    target: str,
    device: torch.device,
    *,
    observed: bool = False,
) -> Lowered:
    """Rewrites `module`, a copy that nobody else uses, so that every site writes and reads pages.

    Where the target rotates by itself and the graph shows the factors, RoPE and the page write are one operation too.
    Inputs are added for (k_pool, v_pool, theta), then for (reads, runs, pages) of each site. With `observed` a sample
    of every query is kept: its rows are an input behind theta, and what is kept of a site is one behind its pages.
    """
    added = AddedInputs(module, example_inputs)
    first = sites[0]
    rows = 16  # of an example page; every size that a policy or a model can change is symbolic
    k_pool = added.add("hf_k_pool", (24, rows, first.head_dim), first.cache.dtype, device, (0, 1))
    v_pool = added.add("hf_v_pool", (24, rows, first.value_dim), first.cache.dtype, device, (0, 1))
    theta = _theta(added, device)
    rows_kept = added.add("hf_rows", (14,), torch.int64, device, (0,)) if observed else None
    replaced: dict[Node, Node] = {}
    tables: tuple[Node, ...] = ()
    for i, site in enumerate(_in_turn(sites, replaced)):
        on = _target_of(i, target)
        tables = reads, runs, pages = _owned_tables(added, i, device, tables)
        with module.graph.inserting_before(site.node):
            fused = fuses_rope(on) and rotatable(site) and site.cache.kind != PREFILL
            write = _rotate_and_write if fused else _write
            query = write(module.graph, site, (k_pool, v_pool, pages))
            if rows_kept is not None:
                kept = added.add(f"hf_kept_{i}", (3, 14, 5, site.head_dim), site.dtype, device, (0, 1, 2))
                module.graph.call_function(torch.ops.headforce.keep_queries.default, (query, rows_kept, kept))
        if site.cache.kind != PREFILL:
            sources = (query, k_pool, v_pool, reads, runs, theta)
            replaced[site.node] = _replace(module.graph, site, sources, site.scale, on)
        _erase_unused(module.graph, (*site.cache.roll_nodes, *site.cache.write_nodes), written=True)
    return _finished(module, added, sites, owned=True)


def lower_view(
    module: GraphModule, example_inputs: Sequence[Any], sites: Sequence[Site], target: str, device: torch.device
) -> Lowered:
    """Rewrites `module`, a copy that nobody else uses, so that every site reads rows of the model's own cache.

    Inputs are added for theta, then for (reads, runs) of each site.
    """
    added = AddedInputs(module, example_inputs)
    theta = _theta(added, device)
    replaced: dict[Node, Node] = {}
    for i, site in enumerate(_in_turn(sites, replaced)):
        tables = _tables(added, i, device)
        if site.cache.kind == PREFILL:
            continue
        with module.graph.inserting_before(site.node):
            query = _arranged(module.graph, site.query, query_dtype(site))
            key, value = (_arranged(module.graph, o, o.dtype) for o in (site.key, site.value))
        sources = (query, key, value, *tables, theta)
        replaced[site.node] = _replace(module.graph, site, sources, site.key_scale, _target_of(i, target))
    return _finished(module, added, sites, owned=False)


def lower_probed(
    module: GraphModule, example_inputs: Sequence[Any], sites: Sequence[Site], target: str, device: torch.device
) -> Lowered:
    """Measures attention in `module`, a copy that nobody else uses, and leaves everything else as it is.

    An input is added for the query rows that are measured, then one for the statistics of each site.
    """
    added = AddedInputs(module, example_inputs)
    rows = added.add("hf_rows", (14,), torch.int64, device, (0,))
    for i, site in enumerate(sites):
        shape = (3, 2, site.heads, 4, 5)
        statistics = added.add(f"hf_statistics_{i}", shape, torch.float32, device, (1, 3, 4))
        with module.graph.inserting_before(site.node):
            query = _arranged(module.graph, site.query, query_dtype(site))
            key = _arranged(module.graph, site.key, site.key.dtype)
            arguments = (query, key, rows, statistics, site.key_scale)
            module.graph.call_function(torch.ops.headforce.measure_attention.default, arguments)
    check_probed(module, sites)
    return _recompiled(module, added)


def _target_of(site: int, target: str) -> str:
    """The target of the site of this number; from `HEADFORCE_MAX_SITES` on, if that is set, it is the reference."""
    most = os.environ.get(MOST_SITES)
    if most is not None and not most.isdecimal():
        raise HeadforceError("HF-OPTION", site=MOST_SITES, found=repr(most), needed="a number of sites, from 0 on")
    return target if most is None or site < int(most) else "reference"


def _theta(added: AddedInputs, device: torch.device) -> Node:
    return added.add("hf_theta", (8,), torch.float64, device, (0,))


def _tables(added: AddedInputs, i: int, device: torch.device) -> tuple[Node, Node]:
    return (
        added.add(f"hf_reads_{i}", (8, len(READ_FIELDS)), torch.int32, device, (0,)),
        added.add(f"hf_runs_{i}", (12, len(RUN_FIELDS)), torch.int32, device, (0,)),
    )


def _in_turn(sites: Sequence[Site], replaced: Mapping[Node, Node]) -> Iterator[Site]:
    """The sites in order. An operand that is the result of an earlier site is what took that one's place by then."""

    def follow(holder: Any) -> Any:
        return replace(holder, node=replaced.get(holder.node, holder.node))

    names = ("query", "new_key", "new_value", "key", "value")
    for site in sites:
        rope = site.rope
        if rope is not None:
            factors = {n: tuple(map(follow, getattr(rope, n))) for n in ("query_factors", "key_factors")}
            rope = replace(rope, raw_query=follow(rope.raw_query), raw_key=follow(rope.raw_key), **factors)
        yield replace(site, rope=rope, **{name: follow(getattr(site, name)) for name in names})


def _owned_tables(added: AddedInputs, i: int, device: torch.device, others: Sequence[Node]) -> tuple[Node, ...]:
    """Reads, runs and pages of a site; `others` are those of another, if there is one: layers of a pool have tables of
    one shape, as they are cut from the same tensor."""
    if others:
        return tuple(
            added.add_alike(f"hf_{name}_{i}", n) for name, n in zip(("reads", "runs", "pages"), others, strict=True)
        )
    return (*_tables(added, i, device), added.add(f"hf_pages_{i}", (10, 6), torch.int64, device, (0, 1)))


def _write(graph: Graph, site: Site, pools: Sequence[Node]) -> Node:
    """Writes the chunk into its pages; the query."""
    key = _arranged(graph, site.new_key, site.cache.dtype)
    value = _arranged(graph, site.new_value, site.cache.dtype)
    graph.call_function(torch.ops.headforce.write_pages.default, (key, value, *pools))
    return _arranged(graph, site.query, query_dtype(site))


def _rotate_and_write(graph: Graph, site: Site, pools: Sequence[Node]) -> Node:
    """The same out of the query and key before RoPE; the model's own rotation is then used by nobody."""
    rope = site.rope
    assert rope is not None
    query, key = (_arranged(graph, operand, operand.dtype) for operand in (rope.raw_query, rope.raw_key))
    value = _arranged(graph, site.new_value, site.new_value.dtype)
    style = style_of(rope)
    compute = torch.promote_types(rope.raw_query.dtype, torch.float32)
    turn = turn_of(graph, rope.query_factors, style, rope.pairs, compute)
    key_turn = turn
    if rope.key_factors != rope.query_factors:
        key_turn = turn_of(graph, rope.key_factors, style, rope.pairs, compute)
    arguments = (query, key, value, turn, key_turn, style, *pools, query_dtype(site))
    return graph.call_function(torch.ops.headforce.rotate_and_write.default, arguments)


def query_dtype(site: Site) -> torch.dtype:
    """The dtype in which the query meets the keys: that of the result, unless that would round a query which is not.

    Where attention is written out, its weights and values may be rounded behind scores of more bits. An operator
    rounds the query itself, under autocast.
    """
    holds = torch.promote_types(site.query.dtype, site.dtype) == site.dtype
    return site.dtype if holds or op_name(site.node) not in PRODUCTS else site.query.dtype


def rotatable(site: Site) -> bool:
    """Whether the graph shows all that it takes to rotate query and key, head by head, without it."""
    rope = site.rope
    return rope is not None and bool(rope.query_factors and rope.key_factors) and site.heads == site.kv_heads


def _replace(graph: Graph, site: Site, sources: Sequence[Node], scale: float, target: str) -> Node:
    """Puts ragged attention of `sources` (query, key, value, reads, runs, theta) in the place of the site's."""
    with graph.inserting_before(site.node):
        attention = graph.call_function(
            torch.ops.headforce.ragged_attention.default, (*sources, *rotated_pairs(site), scale, target)
        )
        if query_dtype(site) != site.dtype:  # the operator answers in the dtype of the query
            attention = graph.call_function(torch.ops.aten.to.dtype, (attention, site.dtype))
        result = graph.call_function(torch.permute, (attention, tuple(LAYOUT.index(axis) for axis in site.layout)))
        if site.folded is not None:
            result = graph.call_function(torch.flatten, (result, site.folded, site.folded + 1))
    result.meta = dict(site.node.meta)
    site.node.replace_all_uses_with(result)
    _erase_unused(graph, (site.node,))
    return result


def _erase_unused(graph: Graph, nodes: Sequence[Node], *, written: bool = False) -> None:
    """Erases those of `nodes` that nothing uses, and then what they alone used.

    In-place writes stay, but for `nodes` themselves with `written`: they are effects, and torch.fx, which knows only
    some of them, would delete `x.copy_(y)`.
    """
    effects = set(nodes) if written else set()
    queue, erased = list(nodes), set()
    while queue:
        node = queue.pop()  # the latest first: later nodes use earlier ones
        changes = node.is_impure() or any(writes_in_place(node, operand) for operand in node.all_input_nodes)
        if node in erased or node.users or (changes and node not in effects):
            continue
        queue += node.all_input_nodes
        graph.erase_node(node)
        erased.add(node)


def _arranged(graph: Graph, operand: Operand, dtype: torch.dtype) -> Node:
    """The operand as [B, S, H, D] in `dtype`."""
    node = operand.node
    if operand.layout != LAYOUT:
        node = graph.call_function(torch.permute, (node, operand.order(LAYOUT)))
    return node if operand.dtype == dtype else graph.call_function(torch.ops.aten.to.dtype, (node, dtype))


def _finished(module: GraphModule, added: AddedInputs, sites: Sequence[Site], *, owned: bool) -> Lowered:
    check_structure(module, sites, owned=owned)
    return _recompiled(module, added)


def _recompiled(module: GraphModule, added: AddedInputs) -> Lowered:
    module.graph.lint()
    module.recompile()
    return Lowered(module, added.examples)
