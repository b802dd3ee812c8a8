"""Products of two tensors in one form, whatever their spelling: which axes both share, and which one is summed over.

a @ b, torch.matmul(a, b), torch.bmm(a, b)                # three or four dims, no broadcasting
torch.baddbmm(c, a, b, beta=0, alpha=s)                   # c is added if beta is not 0
torch.einsum("bqhd,bkhd->bhqk", a, b)                     # any letters and order, "..." too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from .graph_view import GraphView
from .ops import argument, op_name
from .symbolic import to_number

Letters = tuple[str, ...]
PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm", "__matmul__", "__rmatmul__"})
"""What may be a product of attention. `mm`, of one head, is none that `product_of` reads."""


@dataclass(frozen=True)
class Product:
    """`result = scale * sum over one letter of left * right, + added`; a letter for each dim of each of them."""

    node: Node
    left: tuple[Node, Letters]
    right: tuple[Node, Letters]
    result: Letters
    scale: float = 1.0
    added: Node | None = None

    @property
    def summed(self) -> str:
        """The letter that is summed over."""
        (letter,) = set(self.left[1]) - set(self.result)
        return letter


def product_of(view: GraphView, node: Node) -> Product | None:
    """The product that a node is, or None if it is none, or one with another number of summed or shared axes."""
    name = op_name(node)
    if name == "einsum":
        return _einsum(view, node)
    if name not in PRODUCTS - {"mm"}:
        return None
    scale, added, first = 1.0, None, 0
    if name == "baddbmm":
        beta, alpha = (to_number(argument(node, 3 + i, word, 1)) for i, word in enumerate(("beta", "alpha")))
        if beta is None or alpha is None or beta < 0:
            return None
        scale, added, first = float(alpha), argument(node, 0, "input") if beta else None, 1
    words = ("batch1", "batch2") if name == "baddbmm" else ("input", "mat2" if name == "bmm" else "other")
    a, b = (argument(node, first + i, word) for i, word in enumerate(words))
    if name == "__rmatmul__":
        a, b = b, a
    shapes = view.shape(a), view.shape(b)
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]) or len(shapes[0]) not in (3, 4):
        return None
    if not all(view.facts.equal(x, y) for x, y in zip(shapes[0][:-2], shapes[1][:-2], strict=True)):
        return None  # broadcast
    shared = ("x", "y")[: len(shapes[0]) - 2]
    return Product(node, (a, (*shared, "i", "k")), (b, (*shared, "k", "j")), (*shared, "i", "j"), scale, added)


def _einsum(view: GraphView, node: Node) -> Product | None:
    equation: Any = argument(node, 0, "equation")
    given: Any = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = tuple(given[0])
    if not isinstance(equation, str) or len(given) != 2 or "->" not in equation:
        return None
    terms, out = equation.replace(" ", "").split("->")
    letters = terms.split(",")
    if len(letters) != 2:
        return None
    shapes = [view.shape(operand) for operand in given]
    dots = [0 if s is None else len(s) - len(t) + 3 for s, t in zip(shapes, letters, strict=True) if "..." in t]
    if None in shapes or len(set(dots)) > 1:
        return None
    more = "ABCD"[: dots[0]] if dots else ""
    left, right, result = (tuple(term.replace("...", more)) for term in (*letters, out))
    fits = all(len(set(t)) == len(t) == len(s) for t, s in zip((left, right), shapes, strict=True) if s is not None)
    shared = set(left) & set(right)
    if not fits or len(set(result)) != len(result) or len(shared - set(result)) != 1 or len(shared) not in (2, 3):
        return None
    if set(result) != (set(left) | set(right)) - (shared - set(result)) or len(left) != len(right):
        return None
    sizes = dict(zip(left, shapes[0] or (), strict=True))
    if not all(view.facts.equal(sizes[c], s) for c, s in zip(right, shapes[1] or (), strict=True) if c in sizes):
        return None  # broadcast
    return Product(node, (given[0], left), (given[1], right), result)
