"""Attention that is written out: a product of queries and keys, softmax, a product with values.

Accepted, with operands [B, H, S, D] (or any order of axes in an einsum) and any commuted or divided scale:

    torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v
    torch.matmul(F.softmax(torch.matmul(q / d**0.5, k.mT).float(), dim=-1).to(q.dtype), v)
    torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).mul(scale).softmax(-1), v)

A mask that is added must be proved like any other. Counter-examples: weights that are also returned (HF-ESCAPE);
heads folded into the batch, `masked_fill`, soft caps and everything else between the products (HF-ATTENTION-FORM). A
softmax whose result enters no product is no attention.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from ..axes import label_dims
from ..graph_view import GraphView
from ..normal_form import LABELS, Cursor, peel, walk
from ..ops import argument, op_name, tensor_argument
from ..sources import behind
from .base import AttentionCall, Refused, recognizer

_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm", "__matmul__"})
_NEEDED = "softmax(scale * q @ k^T) @ v with operands [B, H, S, D], or scaled_dot_product_attention"
_SCORES = ("batch", "head", "row", "seq")


@recognizer("attention", order=20)
def written_attention(view: GraphView, node: Node) -> AttentionCall | None:
    """Recognise attention by its softmax; refuse what enters a product but is not of a known form."""
    if op_name(node) != "softmax":
        return None
    second = _entered(view, node)
    if second is None:
        return None
    try:
        return _call(view, node, second)
    except Refused as refused:
        products = (n for n in behind(view, node)[0] if op_name(n) in _PRODUCTS)
        raise Refused(refused.code, refused.found, refused.needed, (second, *products)) from None


def _call(view: GraphView, node: Node, second: Node) -> AttentionCall:
    """The attention around the softmax `node`, whose weights enter the product `second`."""
    out = _labels(view, second, ("batch", "head", "row", "seq"), "dim")
    shape = view.shape(node)
    dim = argument(node, 1, "dim")
    if out is None or shape is None or len(shape) != 4 or dim not in (-1, 3):
        raise Refused("HF-ATTENTION-FORM", f"a softmax that enters {second.name}", _NEEDED)
    weights, values, layout = out
    if next((c for c in walk(weights, view) if c.node is node), None) is None:
        raise Refused("HF-ATTENTION-FORM", f"a softmax that enters {second.name} as values", _NEEDED)
    scores, mask = Cursor(tensor_argument(node), label_dims(_SCORES, shape)), None
    *_, scores = walk(scores, view, factors=True)
    if op_name(scores.node) == "add":
        scores, mask = _unmasked(view, scores)
    found = _products(view, scores)
    if found is None:
        raise Refused("HF-ATTENTION-FORM", f"{scores.node.name} between the product and the softmax", _NEEDED)
    q, k = found
    region = view.region([scores.node], second)
    outside = [u for n in region for u in n.users if u not in region and u is not second]
    if outside:
        raise Refused(
            "HF-ESCAPE", f"attention weights also read by {outside[0].name}", "weights that only attention reads"
        )
    return AttentionCall(second, layout, q, k, values, scores.factor, mask=mask, product=scores.node)


def _entered(view: GraphView, node: Node) -> Node | None:
    """The product into which a softmax goes, through casts and views."""
    queue, seen = [node], set()
    while queue:
        at = queue.pop()
        for user in at.users:
            if op_name(user) in _PRODUCTS:
                return user
            shape = view.shape(user)
            if user in seen or shape is None or tensor_argument(user) is not at:
                continue
            seen.add(user)
            labels = [str(i) for i in range(len(shape))]
            if peel(Cursor(user, label_dims(labels, shape)), view) is not None or op_name(user) == "dropout":
                queue.append(user)
    return None


def _products(view: GraphView, scores: Cursor) -> tuple[Cursor, Cursor] | None:
    """Query and key of the scores [batch, head, row, seq]; a scale on either side of the product is in the factor."""
    if op_name(scores.node) not in _PRODUCTS or any(len(d) > 1 for d in scores.axes):
        return None
    found = _labels(view, scores.node, ("batch", "head", "row", "dim"), "seq")
    if found is None:
        return None
    q, k, layout = found
    order = [d[0].label if d else None for d in scores.axes]
    if any(own is not None and own != name for own, name in zip(order, layout, strict=True)):
        return None
    rename = {"row": "seq"}
    axes = tuple(tuple(a._replace(label=rename.get(a.label, a.label)) for a in d) for d in q.axes)
    return replace(q, axes=axes), k


def _labels(
    view: GraphView, node: Node, first: tuple[str, ...], new: str
) -> tuple[Cursor, Cursor, tuple[str, ...]] | None:
    """The operands of a product, labelled: the first has the axes `first`, the second batch,
    head, the sum axis and `new`.

    Returns both cursors and the labels of the result.
    """
    summed = first[3]
    name = op_name(node)
    if name == "einsum":
        return _einsum(view, node, first, new)
    a, b = argument(node, 0, "input"), argument(node, 1, "other")
    shapes = view.shape(a), view.shape(b)
    if name not in ("matmul", "__matmul__") or any(s is None or len(s) != 4 for s in shapes):
        return None
    left = Cursor(a, label_dims(first, shapes[0]))
    right = Cursor(b, label_dims(("batch", "head", summed, new), shapes[1]))
    return left, right, ("batch", "head", first[2], new) if new == "seq" else LABELS


def _einsum(
    view: GraphView, node: Node, first: tuple[str, ...], new: str
) -> tuple[Cursor, Cursor, tuple[str, ...]] | None:
    equation = argument(node, 0, "equation")
    operands = node.args[1:] if len(node.args) == 3 else (node.args[1] if len(node.args) == 2 else ())
    if not isinstance(equation, str) or len(operands) != 2 or "." in equation or "->" not in equation:
        return None
    terms, result = equation.replace(" ", "").split("->")
    letters = terms.split(",")
    if len(letters) != 2 or any(len(set(t)) != 4 or len(t) != 4 for t in (*letters, result)):
        return None
    both = [c for c in result if c in letters[0] and c in letters[1]]
    row = [c for c in letters[0] if c in result and c not in letters[1]]
    fresh = [c for c in letters[1] if c in result and c not in letters[0]]
    summed = [c for c in letters[0] if c in letters[1] and c not in result]
    if (len(both), len(row), len(fresh), len(summed)) != (2, 1, 1, 1):
        return None
    meaning = {both[0]: "batch", both[1]: "head", row[0]: first[2], fresh[0]: new, summed[0]: first[3]}
    cursors = []
    for operand, term in zip(operands, letters, strict=True):
        shape = view.shape(operand)
        if shape is None or len(shape) != 4:
            return None
        cursors.append(Cursor(operand, label_dims([meaning[c] for c in term], shape)))
    layout = tuple("seq" if meaning[c] == "row" and new == "dim" else meaning[c] for c in result)
    return cursors[0], cursors[1], layout


def _unmasked(view: GraphView, scores: Cursor) -> tuple[Cursor, Node]:
    """The scores without an added mask, and the mask."""
    shape = view.shape(scores.node)
    for tensor, mask in (scores.node.args, scores.node.args[::-1]):
        if view.shape(tensor) != shape or view.dtype(mask) is None or not view.dtype(mask).is_floating_point:
            continue
        *_, last = walk(scores.to(tensor, scores.axes, view), view, factors=True)
        if op_name(last.node) in _PRODUCTS:
            return last, mask
    raise Refused("HF-ATTENTION-FORM", f"{scores.node.name} between the product and the softmax", _NEEDED)
