"""Which axis is which: the dims of a tensor as ordered lists of labelled pieces.

An `Atom` is a piece of a named axis: `size` positions, `stride` positions apart. Attention's operand starts as four
dims of one atom each (batch, head, seq, dim). Going back through `reshape`, `permute` and `expand`, dims merge and
atoms split:

    view(1, 72, 4, 24) -> flatten(2)      the last dim is [head(4), dim(24)]
    expand(3, 4, 6, -1).reshape(72, -1)   seq(72) splits into seq(3, stride 24), seq(4, stride 6), seq(6, stride 1)

The stride says what a split means: of the pieces of `seq`, the one with the largest stride counts frames, and its
stride is the tokens of a frame; a pair of `dim` with stride 1 is interleaved, with stride D/2 split in halves;
`head` with stride n is GQA. Dims of size 1 hold no atom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sympy

from .symbolic import Facts, quotient

ONE = sympy.Integer(1)


class Atom(NamedTuple):
    """`size` positions of the axis `label`, `stride` positions apart."""

    label: str
    size: sympy.Expr
    stride: sympy.Expr = ONE


Dim = tuple[Atom, ...]
Axes = tuple[Dim, ...]


def label_dims(labels: Sequence[str], shape: Sequence[sympy.Expr]) -> Axes:
    """One atom for each dim, none for a dim of size 1."""
    return tuple(() if size == 1 else (Atom(label, size),) for label, size in zip(labels, shape, strict=True))


def merged(atoms: Sequence[Atom]) -> Dim:
    """Adjacent atoms that together are one piece of the same axis, joined."""
    out: list[Atom] = []
    for atom in atoms:
        if out and out[-1].label == atom.label and sympy.expand(out[-1].stride - atom.size * atom.stride) == 0:
            out[-1] = Atom(atom.label, sympy.expand(out[-1].size * atom.size), atom.stride)
        else:
            out.append(atom)
    return tuple(out)


def regroup(axes: Axes, shape: Sequence[sympy.Expr], facts: Facts) -> Axes | None:
    """The axes of the tensor of `shape` whose row-major reshape has `axes`; None if the dims do not divide evenly."""
    pending = [atom for dim in axes for atom in dim]
    out: list[Dim] = []
    for size in reversed(shape):
        dim: list[Atom] = []
        left = size
        while not (left == 1 or facts.equal(left, ONE)):
            if not pending:
                return None
            atom = pending.pop()
            if facts.equal(atom.size, left):
                dim.insert(0, atom)
                break
            rest = quotient(left, atom.size)
            if rest is not None:
                dim.insert(0, atom)
                left = rest
                continue
            outer = quotient(atom.size, left)
            if outer is None:
                return None
            dim.insert(0, Atom(atom.label, left, atom.stride))
            pending.append(Atom(atom.label, outer, sympy.expand(atom.stride * left)))
            break
        out.insert(0, merged(dim))
    return None if pending else tuple(out)


def single(dim: Dim, label: str) -> Atom | None:
    """The atom of a dim that is one piece of `label`, else None."""
    return dim[0] if len(dim) == 1 and dim[0].label == label else None


def names(axes: Axes, labels: Sequence[str]) -> tuple[str, ...] | None:
    """A label for every dim, if each dim is one atom or has size 1.

    Dims of size 1 get the labels that are left, in the order of `labels`: they hold one value, so any order is right.
    """
    taken = [dim[0].label if len(dim) == 1 else None for dim in axes]
    if any(len(dim) > 1 for dim in axes) or len({t for t in taken if t}) != sum(t is not None for t in taken):
        return None
    spare = [label for label in labels if label not in taken]
    if len(axes) != len(labels) or not {t for t in taken if t} <= set(labels):
        return None
    return tuple(t if t is not None else spare.pop(0) for t in taken)
