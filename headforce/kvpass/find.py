"""From a Dynamo graph to a list of attention sites: found, refused, or excluded, and each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from .axes import Axes
from .constants import constant
from .graph_view import GraphView
from .head_axis import check_head_axis
from .history import landing, made_alike
from .normal_form import Cursor, settle
from .places import module_path, source_line, unique
from .recognize import AttentionCall, CacheMatch, Excluded, Refused, Rotation, first, rotated
from .recognize.attention import check_call
from .recognize.prefill import unpadded
from .sent_rows import Sent, sent_rows
from .site import KEPT, Mask, Operand, Refusal, RopeForm, Site, SiteReport
from .sources import behind
from .torch_private import input_source
from .unseen import handed_on, is_written, nested, unclaimed

Verdict = Site | Refused | Excluded

_NO_CLOCK = (
    "HF-ROPE: how the rows of its table follow from the frame was not recognised: they are cut outside the graph, "
    "or in a form that is not among those of docs/models.md"
)


def find_sites(graph_module: GraphModule, example_inputs: Sequence[Any] = ()) -> SiteReport:
    """Recognise the attention of one graph as Dynamo hands it to a backend. The graph is only read.

    Args:
        graph_module: the captured graph, with example values on its nodes.
        example_inputs: what Dynamo gave the backend with it.

    Returns:
        Every attention call of the graph, in graph order, in one of `found`, `refused` and `excluded`.
    """
    view = GraphView(graph_module, example_inputs)
    verdicts: list[tuple[Node, Verdict]] = []
    attended: set[Node] = set()  # projections that attention here reads
    claimed: set[Node] = set()  # graph inputs behind K and V
    for node in view.nodes:
        try:
            call = first("attention", view, node)
            if call is None:
                continue
            projections, inputs = behind(view, call.k.node, call.v.node)
            attended |= projections
            claimed |= inputs
            verdict = _judge(view, call)
            if isinstance(verdict, Site):  # a cache that only takes rows is not behind K and V
                claimed |= {verdict.cache.k_input, verdict.cache.v_input}
            verdicts.append((node, verdict))
        except Refused as refused:
            claimed |= behind(view, *(n for about in (node, *refused.about) for n in about.all_input_nodes))[1]
            verdicts.append((node, refused))
    verdicts += [(node, refused) for node, refused in unclaimed(view, claimed)]
    verdicts += [(node, refused) for node, refused in nested(view)]
    verdicts += [(node, refused) for node, refused in handed_on(view, attended)]
    return _report(view, verdicts)


def _judge(view: GraphView, call: AttentionCall) -> Verdict:
    """One attention call. Refusals are raised."""
    excluded = first("exclude", view, call)
    if excluded is not None:
        return excluded
    check_call(view, call)
    filled = first("prefill", view, call)
    if filled is None:
        mask = _mask(view, call)
        match, rotated = _cache(view, call)
    else:
        mask, match, rotated = KEPT, filled, None
        call = replace(call, **{name: unpadded(view, getattr(call, name)) for name in ("q", "k", "v")})
    query = settle(call.q, view, factors=True)
    call = replace(call, scale=call.scale * query.factor)
    new_key, new_value = settle(match.new_key, view), settle(match.new_value, view)
    key, value = settle(call.k, view), settle(call.v, view)
    writes = [view.order[n] for n in match.form.write_nodes] or [view.order[call.k_user]]
    _check_settled(view, [(query, view.order[call.k_user]), (new_key, min(writes)), (new_value, min(writes))])
    sent = sent_rows(view, query, new_key, new_value)
    rope, notes = _rope(view, query, new_key, sent, rotated)
    if match.form.kind == "cat" and not match.form.returned:
        notes = (*notes, "the grown history is not an output of this graph: the caller keeps the past in another way")
    form = replace(match.form, keys_rotated=None if rope is None else ("before" if rotated is None else "after"))
    if None in (query.layout, new_key.layout, new_value.layout, key.layout, value.layout):
        raise Refused("HF-LAYOUT", "an operand without a dim for each axis", "operands made from [B, S, H, D]")
    check_head_axis(view, new_value)
    shapes = {
        name: dict(zip(c.layout, view.shape(c.node), strict=True))
        for name, c in (("q", query), ("k", new_key), ("v", new_value))
    }
    _check_sizes(view, call, shapes, shapes["k"]["seq"] if sent is None else sent.rows)
    return Site(
        name=module_path(call.node),
        where=source_line(call.node),
        node=call.node,
        layout=call.layout,
        query=_operand(view, query),
        new_key=_operand(view, new_key),
        new_value=_operand(view, new_value),
        key=_operand(view, key),
        value=_operand(view, value),
        batch=shapes["q"]["batch"],
        heads=int(shapes["q"]["head"]),
        kv_heads=int(shapes["k"]["head"]),
        head_dim=int(shapes["q"]["dim"]),
        value_dim=int(shapes["v"]["dim"]),
        query_rows=shapes["q"]["seq"],
        scale=call.scale * match.factor,
        key_scale=call.scale,
        mask=mask,
        cache=form,
        rope=rope,
        dtype=view.dtype(call.node),
        notes=notes,
        folded=call.folded,
    )


def _mask(view: GraphView, call: AttentionCall) -> Mask:
    mask = first("mask", view, call)
    if mask is None:
        found = "is_causal=True over a history" if call.causal else f"the mask {getattr(call.mask, 'name', call.mask)}"
        raise Refused("HF-MASK", found, "no mask, or one that is built from constants in the graph")
    return mask


def _cache(view: GraphView, call: AttentionCall) -> tuple[CacheMatch, Rotation | None]:
    """The cache form; keys that are rotated after the cache are looked through."""
    rotation, factor = rotated(view, call.k)
    whole = call
    if rotation is not None:
        call = replace(call, k=replace(rotation.raw, casts=(), passed=()))
    match = first("cache", view, call)
    if match is None and rotation is not None:  # a pass that reads nothing but its own keys, which it has rotated
        match, rotation = first("cache", view, whole), None
    if match is not None:
        return (match if rotation is None else replace(match, factor=match.factor * factor)), rotation
    inputs = behind(view, call.k.node, call.v.node)[1]
    written = [n for n in view.placeholders if n in inputs and is_written(view, n)]
    if written:
        raise _unknown_read(view, written[0])
    pasts = _pasts(view, call)
    if pasts:
        raise Refused(
            "HF-CACHE-FORM" if len(pasts) == 1 else "HF-CACHE-PARTS",
            f"new rows of V joined with {' and '.join(pasts)} in an unknown way",
            "cat([past, new]), of one past for each of K and V",
        )
    raise Refused(
        "HF-NOHISTORY",
        "K and V that hold no past which this graph keeps",
        "a cache that the graph writes, or cat([past, new])",
    )


def _unknown_read(view: GraphView, cache: Node) -> Refused:
    """What is known about a read of a cache that is of no known form."""
    dims = len(view.shape(cache) or ())
    if dims > 4:
        return Refused(
            "HF-CACHE-FORM",
            f"K or V read from {cache.name}, a tensor of {dims} dims",
            "a tensor [B, S, H, D] for K and one for V, of each layer",
        )
    return Refused(
        "HF-CACHE-FORM",
        f"K or V computed from the cache {cache.name} in an unknown way",
        "a read of views and slices of the cache, behind its write",
    )


def _pasts(view: GraphView, call: AttentionCall) -> list[str]:
    """The graph inputs that reach V beside new rows. V has no RoPE, whose tables may have four dims too."""
    projections, inputs = behind(view, call.v.node)
    pasts = [n for n in view.placeholders if n in inputs and len(view.shape(n) or ()) > 3]
    return [input_source(n) or n.name for n in pasts] if projections else []


def _rope(
    view: GraphView, query: Cursor, new_key: Cursor, sent: Sent | None, rotated: Rotation | None
) -> tuple[RopeForm | None, tuple[str, ...]]:
    """How query and new key are rotated, or why nobody knows, which is refused where it has to be known."""
    rope, notes = _rotations(view, query, new_key if sent is None else sent.key, rotated)
    starts = (None, None) if rope is None or rotated is not None else (rope.query_start, rope.key_start)
    if starts[0] is not None and (starts[1] is None or not view.ensure(sympy.Eq(*starts))):
        raise Refused("HF-CLOCK", "a query and a key of other frames", "one and the same frame for every row")
    if rope is not None and sent is not None:
        rope = replace(rope, key_factors=())  # they turn all rows that were sent
    if rotated is not None and (rope is None or rope.key_start is None):
        raise Refused("HF-ROPE", f"keys rotated after the cache ({notes[0]})", "a RoPE whose clock is in the graph")
    return rope, notes


def _rotations(
    view: GraphView, query: Cursor, new_key: Cursor, rotated: Rotation | None
) -> tuple[RopeForm | None, tuple[str, ...]]:
    q = first("rope", view, query)
    k = rotated or first("rope", view, new_key)
    q, k = (None if r is None or view.written_after(r.raw.node) else r for r in (q, k))
    if q is None or k is None:
        missing = " and ".join(name for name, r in (("query", q), ("key", k)) if r is None)
        return None, (f"HF-ROPE: no RoPE recognised on the {missing}",)
    if not _turn_alike(view, q, k):
        return None, ("HF-ROPE: query and key are rotated in different ways",)
    if first("rope", view, q.raw) is not None:  # of two rotations the table of one says nothing
        q = replace(q, tables=(), places=())
    raw_key = new_key if rotated is not None else k.raw
    notes = () if q.start is not None else (_NO_CLOCK,)
    tables = dict.fromkeys((*q.tables, *(table for place in q.places for table in place.tables)))
    constants = [(table, constant(view, table)) for table in tables if table.op != "placeholder"]
    form = RopeForm(
        kind=q.kind,
        raw_query=_operand(view, q.raw),
        raw_key=_operand(view, raw_key),
        query_start=q.start,
        key_start=k.start,
        frames=q.frames,
        tokens_per_frame=q.tokens_per_frame,
        grid=q.grid,
        pairs=q.pairs,
        temporal=q.temporal,
        temporal_columns=q.temporal_columns,
        tables=q.tables,
        compute_dtype=q.compute_dtype,
        places=q.places,
        query_factors=q.factors,
        key_factors=k.factors if rotated is None else (),
        holds=q.holds,
        made=tuple((table, value) for table, value in constants if isinstance(value, torch.Tensor)),
    )
    return form, notes


def _turn_alike(view: GraphView, q: Rotation, k: Rotation) -> bool:
    """Whether query and key turn by the same tables, which the graph may make once for each."""
    one, other = ((r.kind, r.pairs, r.temporal, r.temporal_columns, r.tokens_per_frame, r.holds) for r in (q, k))
    places = [[(place.axis, place.pairs, place.columns) for place in r.places] for r in (q, k)]
    tables = [[r.tables, [place.tables for place in r.places]] for r in (q, k)]
    return one == other and places[0] == places[1] and made_alike(view, *tables)


def _operand(view: GraphView, cursor: Cursor) -> Operand:
    return Operand(cursor.node, cursor.layout, view.dtype(cursor.node))


def _check_settled(view: GraphView, operands: list[tuple[Cursor, int]]) -> None:
    """An operand that is written in place must have its last write behind it when it is used."""
    for cursor, use in operands:
        late = [w for w in view.writers(cursor.node) if view.order[w] >= use]
        if late:
            raise Refused(
                "HF-ESCAPE",
                f"{cursor.node.name} changed by {late[0].name} after its use",
                "operands that keep their values",
            )


def _check_sizes(view: GraphView, call: AttentionCall, shapes: dict[str, dict[str, Any]], key_rows: sympy.Expr) -> None:
    """`key_rows`: of the key before any of its rows were left out."""
    q, k, v = shapes["q"], shapes["k"], shapes["v"]
    known = all(s[axis].is_Integer for s in (q, k, v) for axis in ("head", "dim"))
    if not known:
        raise Refused(
            "HF-LAYOUT", "a number of heads or channels that changes from call to call", "both known when compiling"
        )
    fits = q["dim"] == k["dim"] and k["head"] == v["head"] and int(q["head"]) % int(k["head"]) == 0
    same = (
        view.facts.equal(q["batch"], k["batch"])
        and view.facts.equal(q["batch"], v["batch"])
        and view.facts.equal(k["seq"], v["seq"])
        and view.ensure(sympy.Eq(q["seq"], key_rows))
    )
    if not (fits and same):
        raise Refused(
            "HF-LAYOUT",
            f"query {q}, new key {k}, new value {v}",
            "one batch, a query for each new row of K and V, heads a multiple of K/V heads",
        )
    groups = int(q["head"]) // int(k["head"])
    tiled = False
    for operand in (call.k, call.v):
        # Where the operator itself repeats heads, they come to it as they are.
        step = groups if _head_count(operand.axes) == q["head"] else 1
        tiled |= any(a.stride != step for a in _head_atoms(view, operand))
    if tiled:
        raise Refused(
            "HF-LAYOUT",
            "K/V heads tiled, so that query head h reads head h mod n",
            "each K/V head repeated for adjacent query heads",
        )


def _head_count(axes: Axes) -> sympy.Expr:
    return sympy.prod(a.size for dim in axes for a in dim if a.label == "head")


def _head_atoms(view: GraphView, cursor: Cursor) -> list[Any]:
    return [a for dim in landing(view, cursor, factors=True).cursor.axes for a in dim if a.label == "head"]


def _report(view: GraphView, verdicts: list[tuple[Node, Verdict]]) -> SiteReport:
    names = unique([module_path(node) for node, _ in verdicts])
    found, refused, excluded = [], [], []
    for name, (node, verdict) in zip(names, verdicts, strict=True):
        where = source_line(node)
        if isinstance(verdict, Site):
            found.append(replace(verdict, name=name))
        elif isinstance(verdict, Refused):
            refused.append(Refusal(verdict.code, name, where, verdict.found, verdict.needed))
        else:
            excluded.append(Refusal(verdict.code, name, where, verdict.reason, "nothing: no policy is about it"))
    inputs = {node.name: input_source(node) for node in view.placeholders}
    return SiteReport(tuple(found), tuple(refused), tuple(excluded), view.binder, inputs)
