"""Following K and V back, through views and slices, to the graph input that keeps the past."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import sympy
from torch.fx import Node

from .axes import Atom, Axes
from .graph_view import GraphView
from .normal_form import Cursor, peel, step_back
from .ops import ALIASING, op_name, words
from .site import Rows
from .slices import slices


@dataclass(frozen=True)
class Trace:
    """A cursor and, for each axis that was sliced on the way, the rows of it that are seen."""

    cursor: Cursor
    spans: dict[str, Rows]

    @property
    def node(self) -> Node:
        return self.cursor.node

    def rows(self, label: str, view: GraphView) -> Rows | None:
        """The rows of `label` at the node that are seen; the whole axis if it was not sliced."""
        if label in self.spans:
            return self.spans[label]
        dims = [i for i, dim in enumerate(self.cursor.axes) if any(a.label == label for a in dim)]
        shape = view.shape(self.node)
        return Rows(sympy.S.Zero, shape[dims[0]]) if len(dims) == 1 and len(self.cursor.axes[dims[0]]) == 1 else None


def trace(view: GraphView, cursor: Cursor, *, factors: bool = False, until: Node | None = None) -> Iterator[Trace]:
    """Steps back from a cursor through value-keeping operations and slices of whole axes, the start included.

    Goes no further than `until`, which may be a copy that is written: its value is not that of what was copied.
    """
    state: Trace | None = Trace(cursor, {})
    while state is not None:
        yield state
        if state.node is until:
            return
        step = peel(state.cursor, view, factors=factors)
        if step is None and until is not None:  # what was taken out of it: who asks looks at its writes
            back = step_back(state.cursor, view, factors=factors)
            step = back if back is not None and view.root(back.node) is until else None
        state = replace(state, cursor=step) if step is not None else _sliced(view, state, until)


def landing(view: GraphView, cursor: Cursor, *, factors: bool = False, until: Node | None = None) -> Trace:
    """The last step of `trace`."""
    *_, last = trace(view, cursor, factors=factors, until=until)
    return last


def _sliced(view: GraphView, state: Trace, until: Node | None) -> Trace | None:
    found = slices(view, state.node)
    if found is None:
        return None
    source, ranges = found
    root = view.root(source)
    if view.written_after(source) and root.op != "placeholder" and root is not until:
        return None
    axes, spans, sizes = list(state.cursor.axes), dict(state.spans), view.shape(source)
    for dim, rows in ranges.items():
        here = axes[dim]
        if len(here) > 1 or (
            here and (here[0].stride != 1 or not view.facts.equal(here[0].size, rows.stop - rows.start))
        ):
            return None
        if not here:  # one row of an axis: its name is that of a dim of size 1, which carries none
            return None
        label, inner = here[0].label, spans.get(here[0].label, Rows(sympy.S.Zero, rows.stop - rows.start))
        axes[dim] = (Atom(label, sizes[dim]),)
        spans[label] = Rows(sympy.expand(rows.start + inner.start), sympy.expand(rows.start + inner.stop))
    return Trace(state.cursor.to(source, tuple(axes), view), spans)


def plain_layout(axes: Axes, shape: tuple[sympy.Expr, ...], view: GraphView) -> bool:
    """Whether every dim of a tensor of `shape` is one whole axis."""
    return all(
        not dim or (len(dim) == 1 and dim[0].stride == 1 and view.facts.equal(dim[0].size, s))
        for dim, s in zip(axes, shape, strict=True)
    )


def same_value(view: GraphView, one: Cursor, other: Cursor) -> bool:
    """Whether both are the same rows of the same tensor."""
    a, b = landing(view, one), landing(view, other)
    if a.node is not b.node or a.spans.keys() != b.spans.keys():
        return False
    equal = all(
        view.facts.equal(x, y) for label in a.spans for x, y in zip(a.spans[label], b.spans[label], strict=True)
    )
    casts = a.cursor.casts == b.cursor.casts
    return equal and casts and [_sizes(d) for d in a.cursor.axes] == [_sizes(d) for d in b.cursor.axes]


_COMPUTES = ALIASING | words("""
    add arange cat cos div einsum exp int log long mul neg outer polar pow reciprocal repeat_interleave sin stack sub
""")
"""What `made_alike` looks through: functions of their operands that are the same in every call."""


def made_alike(view: GraphView, one: Any, other: Any) -> bool:
    """Whether two values of a graph are the same because the same is computed twice from the same."""
    if one is other:
        return True
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(made_alike(view, a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, slice) and isinstance(other, slice):
        return made_alike(view, (one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if not isinstance(one, Node) or not isinstance(other, Node):
        return not isinstance(one, Node) and not isinstance(other, Node) and type(one) is type(other) and one == other
    if view.shape(one) is None and view.shape(other) is None:
        numbers = view.expr(one), view.expr(other)
        return None not in numbers and bool(view.facts.equal(*numbers))
    names = op_name(one), op_name(other)
    if names[0] != names[1] or names[0] not in _COMPUTES or view.writers(one) or view.writers(other):
        return False
    keywords = one.kwargs.keys() == other.kwargs.keys()
    return (
        keywords
        and made_alike(view, one.args, other.args)
        and all(made_alike(view, value, other.kwargs[name]) for name, value in one.kwargs.items())
    )


def _sizes(dim: tuple) -> list[tuple[str, sympy.Expr]]:
    return [(atom.label, atom.stride) for atom in dim]
