"""What the recogniser reports: attention sites that were found, and those that were refused and why.

All numbers that may change from call to call are sympy expressions over the graph's integer inputs; `SiteReport.binder`
evaluates them. Rows are tokens of one cache; frames are latent frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from .symbolic import Binder


class Rows(NamedTuple):
    """Rows [start, stop) of a cache."""

    start: sympy.Expr
    stop: sympy.Expr


@dataclass(frozen=True)
class Operand:
    """One input of attention, as a node of four dims.

    Attributes:
        node: the node. It holds the values that attention (or the cache write) sees, before views and lossless casts.
        layout: `("batch", "seq", "head", "dim")` in the order of the node's dims.
        dtype: the node's dtype.
    """

    node: Node
    layout: tuple[str, ...]
    dtype: torch.dtype

    def order(self, layout: tuple[str, ...]) -> tuple[int, ...]:
        """The `permute` argument that brings the node to `layout`."""
        return tuple(self.layout.index(label) for label in layout)


@dataclass(frozen=True)
class Mask:
    """The mask, as proved. `kind` is "none", "all_true", "causal", "block_causal" or "sliding_window"; `block` is the
    rows of one block, or of the window. The last query is aligned to the last key."""

    kind: str
    block: int | None = None


KEPT = Mask("kept")
"""Any mask of a call that stays as it is."""


@dataclass(frozen=True)
class Hidden:
    """A mask that says which places are hidden, where others say which are read."""

    node: Node

    @property
    def name(self) -> str:
        return self.node.name


@dataclass(frozen=True)
class Roll:
    """Eviction inside the graph: rows `source` are moved to `target` before the new rows are written.

    Proved: the move is towards the front and the new rows leave no gap behind `target`. Not to be proved in the graph:
    that `source` ends with the last row held. It does where what is written next is the next frame, by a clock that
    counts evicted rows (`Layer.rows_evicted`).
    """

    source: Rows
    target: Rows

    @property
    def sink(self) -> sympy.Expr:
        """Rows at the front that stay."""
        return self.target.start

    @property
    def evicted(self) -> sympy.Expr:
        """Rows that are lost, the oldest after the sink."""
        return sympy.expand(self.source.start - self.target.start)


@dataclass(frozen=True)
class ReadRule:
    """What this graph shows of the model's own rule, in rows of one pass, the new rows included.

    Attributes:
        sink: rows read at the front of the cache, or None where this graph does not evict (then nothing shows it).
        window: newest rows read besides, or None where this graph reads all that the cache holds.
    """

    sink: sympy.Expr | None
    window: sympy.Expr | None


PREFILL = "prefill"
"""The kind of a cache that only takes the rows of a pass, whose attention does not read it."""


@dataclass(frozen=True)
class CacheForm:
    """How K and V of the past reach attention.

    Attributes:
        kind: "append" (written in place into a buffer), "cat" (`cat([past, new])`), or `PREFILL`.
        k_input, v_input: the graph inputs that are the cache, before this pass.
        k_index, v_index: their positions among the graph's inputs.
        layout: what each dim of the cache is.
        dtype: dtype of the cache.
        append: the rows written in this pass; for "cat", the rows that the new part takes in the result.
        read: the rows that attention reads. It ends where `append` ends (proved).
        capacity: rows of the cache input.
        roll: eviction before the write, or None.
        rule: the model's own read rule, as far as this graph shows it.
        segments: the rows read, as parts in order (more than one only where parts of the past are joined).
        write_nodes, roll_nodes: the nodes that write the cache inputs and roll them, K and V together.
        read_dtype: dtype in which attention reads the rows (a cast after the cache), equal to `dtype` if none.
        returned: nodes that hand the grown history back to the caller ("cat" only).
        keys_rotated: "before" if RoPE is applied before the cache, "after" if when reading, None if not recognised.
    """

    kind: str
    k_input: Node
    v_input: Node
    k_index: int
    v_index: int
    layout: tuple[str, ...]
    dtype: torch.dtype
    append: Rows
    read: Rows
    capacity: sympy.Expr
    roll: Roll | None
    rule: ReadRule
    segments: tuple[Rows, ...]
    write_nodes: tuple[Node, ...]
    roll_nodes: tuple[Node, ...]
    read_dtype: torch.dtype
    returned: tuple[Node, ...] = ()
    keys_rotated: str | None = None


@dataclass(frozen=True)
class Factor:
    """Cosines, sines or both (complex) of a rotation, one row for each row of the chunk.

    `dims`: what each dim of the node is: "seq" (rows, or a slower part of them before a faster), "dim" (pairs, or lanes
    of which both of a pair are equal), or "" where the node is the same for all.
    """

    node: Node
    dims: tuple[str, ...]


class Columns(NamedTuple):
    """Where the values of `count` pairs stand in a table: every `step`-th from `first` on of those of a position, once
    the dim `rows` is in front and all others are flat. Without `rows`, positions share them."""

    rows: int | None
    first: int
    step: int
    count: int


@dataclass(frozen=True)
class PlaceTable:
    """Where a table turns pairs by the place of a token in its frame.

    Attributes:
        axis: "height" (the row of tokens picks the row of the table) or "width". pairs: [first, last) pairs it turns.
        columns, tables: as in `RopeForm`.
    """

    axis: str
    pairs: tuple[int, int]
    columns: tuple[Columns, Columns]
    tables: tuple[Node, ...]


@dataclass(frozen=True)
class RopeForm:
    """RoPE around the site.

    Attributes:
        kind: "complex" (complex multiplication, pairs 2p and 2p + 1), "interleaved" (real arithmetic, the same pairs)
            or "split_half" (real arithmetic, pairs p and p + D/2).
        raw_query, raw_key: query and key before the rotation.
        query_start, key_start: the first frame of each; None if the table is made outside the graph.
        frames: frames that the query holds, or None.
        tokens_per_frame: tokens of a frame, or None.
        grid: (height, width) of a frame in tokens if the table shows them, or None.
        pairs: pairs of the head dim, D/2.
        temporal: [first, last) pairs that turn with the frame, or None.
        temporal_columns: of the cosines and of the sines that turn them, or None.
        tables: the graph inputs (or nodes) that are the table: one complex, one with both cosines and sines, or one of
            each. Or one of which the graph makes these, see `holds`.
        places: how the other pairs turn, for both axes of the frame; empty where the table does not show it.
        compute_dtype: dtype of the rotation itself.
        query_factors, key_factors: a complex factor, or cosine and sine, as the graph has them; empty where they lie in
            another way, so that only the graph itself can rotate.
        holds: what tables hold: "turns", "angles", or "rates", the radians of each pair from one position to the next.
        made: the tables that the graph makes from constants, and what they hold.
    """

    kind: str
    raw_query: Operand
    raw_key: Operand
    query_start: sympy.Expr | None
    key_start: sympy.Expr | None
    frames: sympy.Expr | None
    tokens_per_frame: sympy.Expr | None
    grid: tuple[sympy.Expr, sympy.Expr] | None
    pairs: int
    temporal: tuple[int, int] | None
    temporal_columns: tuple[Columns, Columns] | None
    tables: tuple[Node, ...]
    compute_dtype: torch.dtype
    places: tuple[PlaceTable, ...] = ()
    query_factors: tuple[Factor, ...] = ()
    key_factors: tuple[Factor, ...] = ()
    holds: str = "turns"
    made: tuple[tuple[Node, Tensor], ...] = field(default=(), compare=False)

    @property
    def all_tables(self) -> tuple[Node, ...]:
        """The tables of all pairs, once each."""
        return tuple(dict.fromkeys((*self.tables, *(table for place in self.places for table in place.tables))))


@dataclass(frozen=True)
class Site:
    """One attention call over a history, with everything that a rewrite needs.

    Attributes:
        name: path of the module, such as "blocks.0.self_attn", or "site0".
        where: file:line of the model's source.
        node: the attention node; a rewrite replaces its value.
        layout: what each dim of the attention node's result is. folded: None, or the first of two adjacent dims of
            `layout` that are one in the result.
        query: the query as attention sees it (rotated).
        new_key, new_value: K and V of this pass, before they enter the cache.
        key, value: K and V as attention sees them: the rows `cache.segments`, in order. With keys that are rotated when
            read, these are rotated.
        batch, heads, kv_heads, head_dim, value_dim, query_rows: sizes. With fewer `kv_heads` than `heads` (GQA), query
            head h reads K/V head h // (heads // kv_heads).
        scale: factor on products of `query` and `new_key`. key_scale: on those of `query` and `key`, which differs
            where the graph multiplies keys when it reads them.
        mask: the proved class of the mask.
        cache: how the past is kept.
        rope: RoPE, or None where none was recognised (`notes` says why).
        dtype: dtype of the attention result; operands are cast to it first.
        notes: what was looked for and not found, in sentences.
    """

    name: str
    where: str
    node: Node
    layout: tuple[str, ...]
    query: Operand
    new_key: Operand
    new_value: Operand
    key: Operand
    value: Operand
    batch: sympy.Expr
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query_rows: sympy.Expr
    scale: float
    key_scale: float
    mask: Mask
    cache: CacheForm
    rope: RopeForm | None
    dtype: torch.dtype
    notes: tuple[str, ...] = ()
    folded: int | None = None


@dataclass(frozen=True)
class Refusal:
    """An attention call that is left as it is. `code` is in the catalogue of `headforce.errors`."""

    code: str
    site: str
    where: str
    found: str
    needed: str


@dataclass(frozen=True)
class SiteReport:
    """All attention of one graph: every attention call is in exactly one of the three tuples.

    Attributes:
        found: sites that can be rewritten.
        refused: sites with a history (or with an unknown form) that cannot, and why.
        excluded: attention that no policy is about (cross-attention), and how that was seen.
        binder: evaluates the expressions of the sites from the arguments of a call.
        inputs: where each graph input comes from in the caller's frame, by its node's name.
    """

    found: tuple[Site, ...]
    refused: tuple[Refusal, ...]
    excluded: tuple[Refusal, ...]
    binder: Binder
    inputs: Mapping[str, str] = field(default_factory=dict)
