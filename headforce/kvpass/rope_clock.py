"""What the table of a recognised rotation says: the frames that are turned, and which channels turn with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy
from torch.fx import Node

from .axes import Atom
from .graph_view import GraphView
from .normal_form import Cursor, settle, walk
from .recognize import Rotation
from .rope_table import Leaf
from .selection import select
from .site import PlaceTable
from .symbolic import quotient


def rotation_of(view: GraphView, kind: str, raw: Cursor, cos: object, sin: object, dtype: object) -> Rotation | None:
    """The rotation of `raw` by a table with these parts; None unless the parts of cos and sin belong together.

    The clock is read from the part of the table that the slowest piece of the rows selects.
    """
    raw = _whole_batch(view, settle(raw, view))
    if cos is None or sin is None or not _plain(raw):
        return None
    if [leaf.key() for leaf in cos] != [leaf.key() for leaf in sin]:
        return None
    stride = 1 if kind == "split_half" else 2
    made = (_COMPLEX, _COMPLEX) if kind == "complex" else (_COSINES, _SINES)
    known = all(_functions(leaf) in its for parts, its in zip((cos, sin), made, strict=True) for leaf in parts)
    if any(leaf.lanes != stride for leaf in cos) or not known:
        return None
    dims = [view.shape(raw.node)[i] for i, d in enumerate(raw.axes) if d and d[0].label == "dim"]
    if len(dims) != 1 or not dims[0].is_Integer:
        return None
    pairs = int(dims[0]) // 2
    rotation = Rotation(kind, raw, None, None, None, None, pairs, None, None, _tables(cos, sin), dtype)
    total = view.shape(raw.node)[raw.axes.index(next(d for d in raw.axes if d and d[0].label == "seq"))]
    time = _time(view, cos, total)
    if time is None or time.columns is None:
        return rotation
    other = sin[cos.index(time)]
    first = int(time.first) // stride
    others = [leaf.row for leaf in cos if leaf.row is not None and leaf is not time]
    width = next((row.size for row in others if row.stride == 1), None)
    height = next((row.size for row in others if row.stride == width), None)
    whole = len(others) == 2 and None not in (height, width)
    return replace(
        rotation,
        start=time.start,
        frames=sympy.S.One if time.row is None else time.row.size,
        tokens_per_frame=total if time.row is None else time.row.stride,
        grid=(height, width) if whole else None,
        places=_places(cos, sin, time, stride) if whole else (),
        temporal=(first, first + int(time.count)),
        temporal_columns=(time.columns, other.columns),
        tables=_tables([time], [other]) if time.exact and other.exact else (),
        holds=_held(time),
    )


_COMPLEX = frozenset({(), ("polar",)})
_COSINES = frozenset({(), ("cos",), ("real",), ("real", "polar")})
_SINES = frozenset({(), ("sin",), ("imag",), ("imag", "polar")})
"""What may be between a table and the cosines and sines of a rotation."""


def _functions(leaf: Leaf) -> tuple[str, ...]:
    return tuple(name for name in leaf.path if name != "rates")


def _places(cos: Sequence[Leaf], sin: Sequence[Leaf], time: Leaf, stride: int) -> tuple[PlaceTable, ...]:
    """The parts that turn with the place in the frame; none where their rows do not begin with the table."""
    found = []
    for leaf, other in zip(cos, sin, strict=True):
        if leaf is time:
            continue
        if leaf.row is None or leaf.start != 0 or _held(leaf) != _held(time) or not (leaf.columns and other.columns):
            return ()
        first = int(leaf.first) // stride
        found.append(
            PlaceTable(
                "width" if leaf.row.stride == 1 else "height",
                (first, first + int(leaf.count)),
                (leaf.columns, other.columns),
                _tables([leaf], [other]),
            )
        )
    return tuple(found)


def _held(leaf: Leaf) -> str:
    """What the table holds, see `RopeForm`."""
    if "rates" in leaf.path:
        return "rates"
    return "turns" if {"cos", "sin", "polar"}.isdisjoint(leaf.path) else "angles"


def _time(view: GraphView, parts: Sequence[Leaf], total: sympy.Expr) -> Leaf | None:
    """The part of the table that turns with the frame; None if the graph does not show it.

    It is the part whose row changes most slowly. Where some part has one row for all positions, the chunk has a single
    frame and that part is its time - or the frame has a single row of tokens. The time is then the one whose row moves
    from call to call, or comes first; a wrong guess at frame 0 contradicts the cache writes of the next chunk.
    """
    rows = [leaf for leaf in parts if leaf.row is not None]
    slowest = [leaf for leaf in rows if all(_slower(leaf.row, other.row) for other in rows)]
    covered = [leaf for leaf in slowest if view.facts.equal(sympy.expand(leaf.row.size * leaf.row.stride), total)]
    constant = [leaf for leaf in parts if leaf.row is None]
    if not constant:
        return covered[0] if len(slowest) == len(covered) == 1 and covered[0].start is not None else None
    if len(constant) > 1 or constant[0].start is None or (rows and not covered):
        return None
    alone = constant[0]
    if alone.start.free_symbols or alone is min(parts, key=lambda leaf: leaf.first):
        return alone
    return None


def _slower(a: Atom, b: Atom) -> bool:
    """Whether one step of `a` passes over all of `b`."""
    return a == b or quotient(a.stride, sympy.expand(b.stride * b.size)) is not None


def _whole_batch(view: GraphView, raw: Cursor) -> Cursor:
    """The tensor out of which a single batch row was taken, if `raw` is one."""
    if raw.layout is not None:
        return raw
    *_, last = walk(raw, view)
    whole = select(last, view)
    return whole if whole is not None and len(whole.axes) == 4 and whole.lossless(view) else raw


def _plain(raw: Cursor) -> bool:
    """Four whole axes; a batch row taken out of its batch counts (the caller puts the rows together)."""
    loose = tuple((Atom("batch", d[0].size),) if len(d) == 1 and d[0].label.startswith("=") else d for d in raw.axes)
    return replace(raw, axes=loose).layout is not None


def _tables(cos: object, sin: object) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(leaf.root for leaf in (*cos, *sin)))
