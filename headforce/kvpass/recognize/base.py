"""What recognisers are made of, and how they are found.

A recogniser is a function in a file of its own in this folder, or in a package that names it in the entry point group
`headforce.recognizers`:

    @recognizer("cache", order=10)
    def append_cache(view: GraphView, call: AttentionCall) -> CacheMatch | None: ...

It returns None when the graph is of another form, and raises `Refused` when it is this form but not safe to rewrite.
Kinds: "attention" (view, node) -> AttentionCall; "mask" (view, call) -> Mask; "exclude" (view, call) -> Excluded;
"prefill" and "cache" (view, call) -> CacheMatch; "rope" (view, cursor) -> Rotation. Within a kind, lower `order` is
asked first.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

import sympy
import torch
from torch.fx import Node

from ..graph_view import GraphView
from ..normal_form import Cursor, walk
from ..site import CacheForm, Columns, Factor, PlaceTable

KINDS = ("attention", "mask", "exclude", "prefill", "cache", "rope")
_Function = TypeVar("_Function", bound=Callable[..., Any])
_REGISTRY: dict[str, list[tuple[int, str, Callable[..., Any]]]] = {kind: [] for kind in KINDS}


class Refused(Exception):
    """This form was recognised, and it must not be rewritten. Becomes a `Refusal` with the site's name.

    `about` names the nodes of the refused call besides the one that was asked about: a cache behind them needs no
    refusal of its own.
    """

    def __init__(self, code: str, found: str, needed: str, about: tuple[Node, ...] = ()) -> None:
        super().__init__(code, found, needed)
        self.code, self.found, self.needed, self.about = code, found, needed, about


CACHE_LAYOUTS = (("batch", "seq", "head", "dim"), ("batch", "head", "seq", "dim"))
"""What the dims of a cache may be."""


@dataclass(frozen=True)
class Excluded:
    """No policy is about this call. `code` is in the catalogue; `reason` says how it was seen."""

    code: str
    reason: str


@dataclass(frozen=True)
class AttentionCall:
    """An attention call, whatever its spelling.

    Attributes:
        node: its result.
        layout: what each dim of the result is. folded: None, or the first of two adjacent dims of `layout` that are one
            in the result.
        q, k, v: cursors on the operands; the labels are "batch", "head", "seq", "dim" of the operand itself.
        scale: factor on query-key products.
        mask: None, the mask operand, its class where the call itself says it, or what a recogniser of masks knows.
        causal: whether a causal mask aligned to the first row is asked for.
        dropout: probability.
        product: the query-key product, where attention is written out.
        operator: the operator into which K and V go, where it has several results of which `node` is one.
    """

    node: Node
    layout: tuple[str, ...]
    q: Cursor
    k: Cursor
    v: Cursor
    scale: float
    mask: Any = None
    causal: bool = False
    dropout: Any = 0.0
    product: Node | None = None
    operator: Node | None = None
    folded: int | None = None

    @property
    def k_user(self) -> Node:
        """The node into which K goes."""
        return self.product or self.v_user

    @property
    def v_user(self) -> Node:
        """The node into which V goes."""
        return self.operator or self.node


@dataclass(frozen=True)
class CacheMatch:
    """A cache form with the new K and V before they enter it. `factor` multiplies keys after the cache."""

    form: CacheForm
    new_key: Cursor
    new_value: Cursor
    factor: float = 1.0


@dataclass(frozen=True)
class Rotation:
    """RoPE on one operand: `raw` becomes the operand. See `RopeForm` for the fields."""

    kind: str
    raw: Cursor
    start: sympy.Expr | None
    frames: sympy.Expr | None
    tokens_per_frame: sympy.Expr | None
    grid: tuple[sympy.Expr, sympy.Expr] | None
    pairs: int
    temporal: tuple[int, int] | None
    temporal_columns: tuple[Columns, Columns] | None
    tables: tuple[Node, ...]
    compute_dtype: torch.dtype
    places: tuple[PlaceTable, ...] = ()
    factors: tuple[Factor, ...] = field(default=(), compare=False)
    holds: str = "turns"


def recognizer(kind: str, *, order: int = 50) -> Callable[[_Function], _Function]:
    """Register a function as a recogniser of `kind`.

    Raises:
        ValueError: the kind does not exist.
    """
    if kind not in KINDS:
        raise ValueError(f"no recogniser kind {kind!r}; kinds are {', '.join(KINDS)}")

    def register(function: _Function) -> _Function:
        name = f"{function.__module__}.{function.__qualname__}"
        entries = [entry for entry in _REGISTRY[kind] if entry[1] != name]  # a reloaded file replaces itself
        _REGISTRY[kind] = sorted([*entries, (order, name, function)], key=lambda entry: entry[:2])
        return function

    return register


@cache
def discover() -> None:
    """Import every file of this folder and every entry point, once."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for point in entry_points(group="headforce.recognizers"):
        point.load()


def recognizers(kind: str) -> list[Callable[..., Any]]:
    """The registered recognisers of a kind, in the order in which they are asked."""
    discover()
    return [function for _, _, function in _REGISTRY[kind]]


def first(kind: str, *args: Any) -> Any | None:
    """What the first recogniser of `kind` that knows the form returns, or None."""
    return next((found for function in recognizers(kind) if (found := function(*args)) is not None), None)


def rotated(view: GraphView, cursor: Cursor) -> tuple[Rotation | None, float]:
    """The rotation behind an operand of attention, and the constant that multiplies what was rotated."""
    rotation = first("rope", view, cursor)
    if rotation is not None:
        return rotation, 1.0
    *_, last = walk(cursor, view, factors=True)
    return (first("rope", view, replace(last, factor=1.0)), last.factor / cursor.factor) if last.passed else (None, 1.0)
