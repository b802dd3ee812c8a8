"""What happens to attention scores between the product of queries and keys and the softmax, where it is written out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from .constants import constant
from .graph_view import GraphView
from .normal_form import Cursor, walk
from .ops import argument, op_name
from .products import PRODUCTS
from .recognize.base import Refused
from .site import Hidden
from .sources import behind
from .symbolic import to_number

NEEDED = "softmax(scale * q @ k^T) @ v, or scaled_dot_product_attention"
_MASKING = frozenset({"add", "masked_fill", "where"})


def from_product(view: GraphView, node: Node) -> bool:
    """Whether what is exponentiated is a product of two tensors of a layer, scaled or shifted."""
    reached = behind(view, node)[0]
    return any(op_name(n) in PRODUCTS and len(view.shape(n) or ()) >= 3 for n in reached)


def unmasked(view: GraphView, cursor: Cursor, places: tuple[str, str]) -> tuple[Cursor, Any]:
    """The product of queries and keys behind a softmax, and the mask on the way. `places`: its last two axes."""
    mask = None
    while True:
        *_, cursor = walk(cursor, view, factors=True)
        name = op_name(cursor.node)
        if name in PRODUCTS:
            check_casts(cursor, "scores", "HF-SCOREMOD")
            return cursor, mask
        found = _masked(view, cursor) if name in _MASKING else None
        if found is None:
            code = "HF-SCOREMOD" if from_product(view, cursor.node) else "HF-ATTENTION-FORM"
            raise Refused(code, f"{cursor.node.name} between the product and the softmax", NEEDED)
        last = tuple(d[0].label if len(d) == 1 else None for d in cursor.axes[-2:])
        if mask is not None or cursor.factor <= 0 or any(a not in (b, None) for a, b in zip(last, places, strict=True)):
            raise Refused("HF-MASK", f"{cursor.node.name} as a mask", "one mask [..., queries, keys]")
        cursor, mask = found


def check_casts(cursor: Cursor, what: str, code: str) -> None:
    """Raise `Refused` if a value is cast on the way to anything but floating numbers of at least 16 bits.

    Rounding to those is what a model in lower precision does; whole numbers and 8 bits change what attention computes.
    """
    coarse = [cast for cast in cursor.casts if not cast.is_floating_point or cast.itemsize < 2]
    if coarse:
        raise Refused(
            code, f"{what} cast to {coarse[0]}", "floating numbers of at least 16 bits up to the last product"
        )


def _masked(view: GraphView, cursor: Cursor) -> tuple[Cursor, Any] | None:
    """The scores under a mask, and the mask; None for another operation."""
    node, shape, name = cursor.node, view.shape(cursor.node), op_name(cursor.node)
    choices: list[tuple[Any, Any]] = []
    if name == "add" and not node.kwargs:
        choices = [
            (scores, other)
            for scores, other in (node.args[:2], node.args[1::-1])
            if view.dtype(other) is not None and view.dtype(other).is_floating_point
        ]
    elif name == "masked_fill" and _hides(view, argument(node, 2, "value")):
        choices = [(argument(node, 0, "input"), Hidden(argument(node, 1, "mask")))]
    elif name == "where" and len(node.args) == 3:
        condition, left, right = node.args
        choices = [(left, condition)] if _hides(view, right) else []
        choices += [(right, Hidden(condition))] if _hides(view, left) else []
    for scores, mask in choices:
        if view.shape(scores) != shape:
            continue
        *_, last = walk(cursor.to(scores, cursor.axes, view), view, factors=True)
        if op_name(last.node) in PRODUCTS | _MASKING:
            return cursor.to(scores, cursor.axes, view), mask
    return None


def _hides(view: GraphView, value: Any) -> bool:
    """Whether a filled-in value leaves no weight: -inf, or the least number of a dtype."""
    known = to_number(value) if not isinstance(value, float) else value
    if known is None:
        known = constant(view, value)
    if isinstance(known, torch.Tensor):
        known = float(known.max()) if known.numel() else 0.0
    return known is not None and float(known) <= torch.finfo(torch.float16).min and not math.isnan(float(known))
