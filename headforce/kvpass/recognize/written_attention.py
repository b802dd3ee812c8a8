"""Attention that is written out: a product of queries and keys, softmax, a product with values.

Accepted, with operands of any order of axes, a scale on either side of the first product, commuted or divided:

    torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v                # [B, H, S, D]
    torch.matmul(F.softmax(torch.matmul(q / d**0.5, k.mT).float(), dim=-1).to(q.dtype), v)
    torch.einsum("bhqk,bkhd->bqhd", torch.einsum("bqhd,bkhd->bhqk", q, k).mul(scale).softmax(-1), v)
    torch.bmm(torch.softmax(torch.baddbmm(mask, q, k.mT, beta=1, alpha=scale), -1), v)      # [B * H, S, D]

A mask may be added, filled in (`masked_fill(mask, -inf)`) or chosen (`where(mask, scores, -inf)`); it must be proved
like any other. A softmax whose result enters no product is no attention.

Counter-examples: weights that are also returned (HF-ESCAPE); soft caps, biases, changes in place and everything else
that happens to scores, casts to whole numbers or 8 bits among it (HF-SCOREMOD); softmax without a dim or written as
`exp` over a sum, and weights that are scaled or cast like that on the way (HF-ATTENTION-FORM).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from ..axes import label_dims, names
from ..folded import unfolded
from ..graph_view import GraphView
from ..normal_form import Cursor, peel, walk
from ..ops import argument, op_name, tensor_argument
from ..products import PRODUCTS, Letters, Product, product_of
from ..scores import NEEDED, check_casts, from_product, unmasked
from ..sources import behind
from .base import AttentionCall, Refused, recognizer

_ON_THE_WAY = frozenset({"dropout", "mul", "div", "mul_", "div_", "add", "where", "masked_fill"})


@recognizer("attention", order=20)
def written_attention(view: GraphView, node: Node) -> AttentionCall | None:
    """Recognise attention by its softmax; refuse what enters a product but is not of a known form."""
    name = op_name(node)
    if name not in ("softmax", "exp"):
        return None
    second = _entered(view, node)
    if second is None or (name == "exp" and not from_product(view, node)):
        return None
    try:
        if name == "exp":
            raise Refused("HF-ATTENTION-FORM", f"a softmax written out, {node.name} over its sum", NEEDED)
        return _call(view, node, second)
    except Refused as refused:
        products = (n for n in behind(view, node)[0] if op_name(n) in PRODUCTS)
        raise Refused(refused.code, refused.found, refused.needed, (second, *products)) from None


def _call(view: GraphView, node: Node, entered: Node) -> AttentionCall:
    """The attention around the softmax `node`, whose weights enter the product `entered`."""
    second = product_of(view, entered)
    found = None if second is None or second.added is not None else _weights(view, node, second)
    if second is None or found is None or second.scale != 1:
        raise Refused("HF-ATTENTION-FORM", f"a softmax that enters {entered.name}", NEEDED)
    axes, (value, value_letters) = found
    rows = set(second.result) & set(axes) - set(value_letters)
    (row,), column = rows if len(rows) == 1 else ("",), second.summed
    if not row or axes[_softmax_dim(node, len(axes))] != column:
        raise Refused("HF-ATTENTION-FORM", f"{node.name} over another axis than the keys", NEEDED)
    start = Cursor(_softmaxed(node), label_dims(axes, view.shape(_softmaxed(node))))
    scores, mask = unmasked(view, start, (row, column))
    first = product_of(view, scores.node)
    order = names(scores.axes, axes)
    if first is None or order is None:
        raise Refused("HF-ATTENTION-FORM", f"{scores.node.name} as the product of queries and keys", NEEDED)
    if first.added is not None:
        if mask is not None or order[-2:] != (row, column):
            raise Refused("HF-MASK", f"{scores.node.name} adds a second mask", "one mask [..., queries, keys]")
        mask = first.added
    own = dict(zip(first.result, order, strict=True))
    sides = {own.get(letter, ""): side for side in (first.left, first.right) for letter in side[1]}
    if sides[row] is sides[column]:
        raise Refused("HF-ATTENTION-FORM", f"{scores.node.name} as the product of queries and keys", NEEDED)
    shared = [letter for letter in second.result if letter in axes and letter in value_letters]
    meaning = dict(zip(shared, ("batch", "head") if len(shared) == 2 else ("fold",), strict=True))
    meaning |= {row: "seq", column: "seq"}
    q, k = (
        _operand(view, side[0], [meaning.get(own.get(letter, ""), "dim") for letter in side[1]])
        for side in (sides[row], sides[column])
    )
    v = _operand(view, value, [meaning.get(c, "dim") for c in value_letters])
    _check_private(view, scores.node, second.node)
    call = AttentionCall(
        node=second.node,
        layout=tuple(meaning.get(c, "dim") for c in second.result),
        q=q,
        k=k,
        v=v,
        scale=scores.factor * first.scale,
        mask=mask,
        product=scores.node,
    )
    return call if len(shared) == 2 else unfolded(view, call)


def _check_private(view: GraphView, product: Node, second: Node) -> None:
    region = view.region([product], second)
    outside = [u for n in region for u in view.users(n) if u not in region and u is not second]
    if outside:
        raise Refused(
            "HF-ESCAPE", f"attention weights also read by {outside[0].name}", "weights that only attention reads"
        )


def _softmaxed(node: Node) -> Node:
    source = tensor_argument(node)
    assert source is not None
    return source


def _softmax_dim(node: Node, rank: int) -> int:
    """The axis of a softmax. Without one torch picks it by the number of dims, and not the last."""
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int):
        raise Refused("HF-ATTENTION-FORM", f"{node.name} without a dim", "softmax(scores, dim=-1)")
    return dim % rank


def _operand(view: GraphView, node: Node, labels: Sequence[str]) -> Cursor:
    return Cursor(node, label_dims(labels, view.shape(node) or ()))


def _weights(view: GraphView, softmax: Node, second: Product) -> tuple[Letters, tuple[Node, Letters]] | None:
    """The letters of the softmax's dims, and the values: whichever operand does not come from the softmax."""
    for weights, value in ((second.left, second.right), (second.right, second.left)):
        start = _operand(view, weights[0], weights[1])
        at = next((c for c in walk(start, view) if c.node is softmax), None)
        order = None if at is None else names(at.axes, weights[1])
        if at is not None and order is not None:
            check_casts(at, "attention weights", "HF-ATTENTION-FORM")
            return order, value
    return None


def _entered(view: GraphView, node: Node) -> Node | None:
    """The product into which a softmax goes, through casts, views and what may be done to weights."""
    queue, seen = [node], set()
    while queue:
        at = queue.pop()
        for user in view.users(at):
            if op_name(user) in PRODUCTS:
                return user
            shape = view.shape(user)
            if user in seen or shape is None or tensor_argument(user) is not at:
                continue
            seen.add(user)
            labels = [str(i) for i in range(len(shape))]
            passed = peel(Cursor(user, label_dims(labels, shape)), view) is not None
            if passed or op_name(user) in _ON_THE_WAY:
                queue.append(user)
    return None
