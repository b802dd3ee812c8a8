"""Capacity as an expression in s, the frames committed, and n, the frames of the longest chunk."""

from __future__ import annotations

import sympy

from .node import Node, Term, Union
from .rule import Rule

S, N = sympy.symbols("s n", integer=True, nonnegative=True)
"""Committed frames, and frames of the current chunk."""


def bound(node: Node, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
    """Most frames that `node` must hold. A union holds at most the sum of its parts and never more than s."""
    if isinstance(node, Term):
        return node.op.bound(s, n)
    parts = [bound(part, s, n) for part in node.parts]
    return sympy.Min(s, sympy.Add(*parts)) if isinstance(node, Union) else sympy.Min(*parts)


def limit(rule: Rule, n: int) -> int | None:
    """The bound for an endless stream of chunks of up to `n` frames; None if there is none."""
    value = sympy.simplify(rule.bound(sympy.oo, sympy.Integer(n)))
    return None if value.is_infinite else int(value)
