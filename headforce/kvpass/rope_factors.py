"""The factors of a rotation: the nodes that hold its cosines and sines, one row for each row of the chunk.

A rewrite that rotates by itself takes them as they are, and so needs to know only how they lie, not what they are made
of. Accepted are whole rows and whole pairs (or whole lanes, of which both of a pair are equal), with dims of size one
anywhere; everything else leaves the rotation to the model.
"""

from __future__ import annotations

import operator

import sympy
import torch
from torch.fx import Graph, Node

from .axes import Axes, Dim
from .graph_view import GraphView
from .rope_table import broadcast
from .site import Factor


def factors_of(view: GraphView, axes: Axes, *nodes: Node) -> tuple[Factor, ...]:
    """The factors of an operand with `axes`: one complex node, or cosine and sine. Empty if one of them lies otherwise,
    or is changed after it was made."""
    found = [_factor(view, axes, node) for node in nodes]
    if any(f is None or view.written_after(f.node) for f in found):
        return ()
    return tuple(f for f in found if f is not None)


def _factor(view: GraphView, axes: Axes, node: Node) -> Factor | None:
    shape = view.shape(node)
    assert shape is not None
    of_dims = broadcast(axes, shape)
    labels = tuple(_label(dim) for dim in of_dims)
    if None in labels or labels.count("dim") != 1:
        return None
    # The pieces of the rows lie one within the other, and together they are all rows.
    rows = [dim[0] for dim in of_dims if _label(dim) == "seq"]
    step = sympy.S.One
    for atom in reversed(rows):
        if not view.facts.equal(atom.stride, step):
            return None
        step = sympy.expand(step * atom.size)
    total = sympy.prod(atom.size for dim in axes for atom in dim if atom.label == "seq")
    if not view.facts.equal(step, sympy.expand(total)):
        return None
    return Factor(node, tuple(label or "" for label in labels))


def _label(dim: Dim) -> str | None:
    """Empty for a dim that is the same for all; None for anything but a piece of the rows, or the head dim."""
    if not dim:
        return ""
    return dim[0].label if len(dim) == 1 and dim[0].label in ("seq", "dim") else None


def turn_of(graph: Graph, factors: tuple[Factor, ...], style: str, pairs: int, dtype: torch.dtype) -> Node:
    """A node [S, D / 2, 2] in `dtype`: the cosine and sine of every row and pair."""
    if len(factors) == 1:
        (complex_,) = factors
        real = graph.call_function(torch.view_as_real, (_rows_first(graph, complex_),))
        turn = graph.call_function(torch.reshape, (real, (-1, pairs, 2)))
    else:
        lanes = [_pairs(graph, factor, style, pairs) for factor in factors]
        turn = graph.call_function(torch.stack, (lanes, -1))
    return graph.call_function(torch.ops.aten.to.dtype, (turn, dtype))


def _rows_first(graph: Graph, factor: Factor) -> Node:
    order = [i for i, dim in enumerate(factor.dims) if dim != "dim"] + [factor.dims.index("dim")]
    if order == list(range(len(order))):
        return factor.node
    return graph.call_function(torch.permute, (factor.node, tuple(order)))


def _pairs(graph: Graph, factor: Factor, style: str, pairs: int) -> Node:
    """[S, D / 2] out of a table over pairs, or over lanes of which both of a pair are equal."""
    rows = graph.call_function(torch.flatten, (_rows_first(graph, factor), 0, -2))
    width = factor.node.meta["example_value"].shape[factor.dims.index("dim")]
    if int(width) == pairs:
        return rows
    lanes = slice(None, None, 2) if style == "interleaved" else slice(None, pairs)
    return graph.call_function(operator.getitem, (rows, (slice(None), lanes)))
