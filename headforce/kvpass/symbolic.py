"""Sizes and slice bounds as sympy expressions over the graph's integer inputs, and proofs about them.

A bound in the graph is a Python int, or a SymInt whose sympy expression torch already keeps. `Facts` proves
statements from what Dynamo guards on, which holds whenever the graph runs; what it cannot prove it answers with
False, never with a guess. `Binder` evaluates an expression later, from the arguments of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from . import torch_private
from .linear import Inequality, impossible, inequality

Linear = tuple[sympy.Expr, dict[sympy.Expr, sympy.Expr]]
_NEAR = 40  # facts in each round; the bounds that matter are near
_SPLITS = 3


def to_expr(value: Any) -> sympy.Expr | None:
    """An int, SymInt or integer-valued node as an expression; None for anything else (floats and bools too)."""
    if isinstance(value, Node):
        value = value.meta.get("example_value")
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return sympy.Integer(value)
    if isinstance(value, torch.SymInt):
        return torch_private.expression(value)
    if isinstance(value, sympy.Expr):
        return value
    return None


def to_number(value: Any) -> int | float | None:
    """A Python number, or a node or symbol that a guard has fixed to one; None for anything that may change."""
    if isinstance(value, Node):
        value = value.meta.get("example_value")
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        expr = torch_private.expression(value)
        if not expr.is_number:
            return None
        value = int(expr) if expr.is_Integer else float(expr)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
    """`a / b` if `b` divides `a` as a polynomial with integer coefficients, else None."""
    if a.is_Integer and b.is_Integer:
        return sympy.Integer(int(a) // int(b)) if int(b) and int(a) % int(b) == 0 else None
    ratio = sympy.cancel(a / b)
    if sympy.fraction(ratio)[1] != 1:
        return None
    return ratio if all(c.is_Integer for c in sympy.expand(ratio).as_coefficients_dict().values()) else None


def _linear(expr: sympy.Expr) -> Linear:
    """`expr` as a constant and coefficients of opaque terms; a product or a Max counts as one term."""
    coefficients = dict(sympy.expand(expr).as_coefficients_dict())
    constant = coefficients.pop(sympy.S.One, sympy.S.Zero)
    return constant, coefficients


def _integral(linear: Linear) -> Inequality | None:
    """`linear >= 0` with integer coefficients; None where it has others."""
    constant, terms = linear
    if not all(c.is_Integer for c in (constant, *terms.values())):
        return None
    return inequality(int(constant), {term: int(c) for term, c in terms.items()})


class Facts:
    """What is known about the graph's integers: guards and ranges, all as `expression >= 0`.

    Args:
        guards: relations (sympy) that hold whenever the graph runs.
        ranges: lower and upper bound of each symbol; infinite ones are skipped.
    """

    def __init__(
        self, guards: Iterable[sympy.Basic] = (), ranges: dict[sympy.Symbol, tuple[Any, Any]] | None = None
    ) -> None:
        guards = list(guards)
        self._fixed = _fixed_terms(guards)
        found: list[sympy.Expr] = []
        for guard in guards:
            found += _inequalities(guard)
        for symbol, (low, high) in (ranges or {}).items():
            if getattr(low, "is_Integer", False) or isinstance(low, int):
                found.append(symbol - low)
            if getattr(high, "is_Integer", False) or isinstance(high, int):
                found.append(high - symbol)
        found += [e.xreplace({term: value}) for term, value in self._fixed.items() for e in _definition(term)]
        self._known: list[tuple[Linear, Inequality | None]] = []
        self._about: dict[sympy.Expr, list[int]] = {}  # the numbers of the facts in which a term occurs
        self._learn(found)
        # The layers of a model ask the same again and again, and to expand an expression is most of an answer.
        self._answers: dict[sympy.Expr | tuple[sympy.Expr, sympy.Expr], bool] = {}

    @property
    def count(self) -> int:
        """How many facts there are; `assume` adds to them."""
        return len(self._known)

    def assume(self, relation: sympy.Basic) -> None:
        """Add what a guard has just been added about."""
        self._learn(_inequalities(relation))
        self._answers = {asked: answer for asked, answer in self._answers.items() if answer}

    def _learn(self, found: list[sympy.Expr]) -> None:
        for expr in dict.fromkeys(sympy.expand(self.simplify(e)) for e in found):
            if not expr.is_number:
                linear = _linear(expr)
                for term in linear[1]:
                    self._about.setdefault(term, []).append(len(self._known))
                self._known.append((linear, _integral(linear)))

    def simplify(self, expr: sympy.Expr) -> sympy.Expr:
        """`expr` with every term that a guard has fixed replaced by its value."""
        if not self._fixed or expr.is_number:
            return expr
        while (simpler := expr.xreplace(self._fixed)) != expr:
            expr = simpler
        return expr

    def equal(self, a: sympy.Expr | None, b: sympy.Expr | None) -> bool:
        """Whether `a == b` is proved."""
        if a is None or b is None:
            return False
        if a == b:
            return True
        if a.is_Integer and b.is_Integer:
            return False
        return self.le(b, a) and self.le(a, b)

    def le(self, a: sympy.Expr | None, b: sympy.Expr | None) -> bool:
        """Whether `a <= b` is proved."""
        if a is None or b is None:
            return False
        if (a, b) not in self._answers:
            self._answers[a, b] = self.nonnegative(b - a)
        return self._answers[a, b]

    def nonnegative(self, expr: sympy.Expr) -> bool:
        """Whether `expr >= 0` is proved, for an integer-valued expression."""
        if expr.is_Integer:
            return bool(expr >= 0)
        if expr not in self._answers:
            plain = sympy.expand(self.simplify(expr))
            if plain not in self._answers:
                self._answers[plain] = self._proved(plain)
            self._answers[expr] = self._answers[plain]
        return self._answers[expr]

    def _proved(self, expr: sympy.Expr) -> bool:
        return self._near(expr) or self._split(expr, (), _SPLITS)

    def _near(self, expr: sympy.Expr, assumed: tuple[sympy.Expr, ...] = ()) -> bool:
        """One fact plus a constant: the common case, and cheap."""
        constant, terms = _linear(expr)
        if not terms:
            return bool(constant >= 0)
        facts = [self._known[i][0] for i in self._about.get(next(iter(terms)), ())]
        return any(terms == other and constant >= base for base, other in (*facts, *map(_linear, assumed)))

    def _split(self, expr: sympy.Expr, assumed: tuple[sympy.Expr, ...], depth: int) -> bool:
        """Each operand of a Max or Min is one case; what is linear then is left to elimination."""
        choice = next(iter(expr.atoms(*torch_private.MAX_CLASSES, *torch_private.MIN_CLASSES)), None) if depth else None
        if choice is None:
            return self._near(expr, assumed) or self._linear(expr, assumed)
        largest = isinstance(choice, torch_private.MAX_CLASSES)
        for picked in choice.args:
            others = [a for a in choice.args if a is not picked]
            order = tuple((picked - o) if largest else (o - picked) for o in others)
            if not self._split(sympy.expand(expr.xreplace({choice: picked})), assumed + order, depth - 1):
                return False
        return True

    def _linear(self, expr: sympy.Expr, assumed: tuple[sympy.Expr, ...]) -> bool:
        """Whether `expr <= -1` contradicts what is known and assumed. Products and divisions are opaque variables."""
        goal = _linear(-1 - expr)
        system = [goal, *(_linear(e) for e in assumed)]
        reach = set().union(*(terms for _, terms in system))
        near: list[int] = []
        for _ in range(2):  # facts that share a term with the goal, and facts that share a term with those
            system += [_linear(e) for term in reach for e in _definition(term)]
            found = {i for term in reach for i in self._about.get(term, ())}
            near += sorted(found.difference(near))[:_NEAR]
            reach.update(*(self._known[i][0][1] for i in near))
        rows = [*map(_integral, system), *(self._known[i][1] for i in near)]
        return rows[0] is not None and impossible(row for row in rows if row is not None)


def _fixed_terms(guards: list[sympy.Basic]) -> dict[sympy.Expr, sympy.Expr]:
    """Terms with one value, from equations such as Eq(96*(s87//2), 384); a value found may fix further terms."""
    equations = [g.lhs - g.rhs for g in guards if isinstance(g, sympy.Eq) and not g.atoms(sympy.Float)]
    fixed: dict[sympy.Expr, sympy.Expr] = {}
    pending = True
    while pending:
        pending = False
        for equation in equations:
            constant, terms = _linear(equation.xreplace(fixed))
            if len(terms) == 1:
                ((term, factor),) = terms.items()
                value = -constant / factor
                if value.is_Integer and term not in fixed:
                    fixed[term] = value
                    pending = True
    return fixed


def _inequalities(guard: sympy.Basic) -> list[sympy.Expr]:
    if isinstance(guard, sympy.And):
        return [e for part in guard.args for e in _inequalities(part)]
    if not isinstance(guard, sympy.core.relational.Relational) or guard.atoms(sympy.Float):
        return []
    a, b = guard.lhs, guard.rhs
    if isinstance(guard, sympy.Ge):
        return [a - b]
    if isinstance(guard, sympy.Le):
        return [b - a]
    if isinstance(guard, sympy.Gt):
        return [a - b - 1]
    if isinstance(guard, sympy.Lt):
        return [b - a - 1]
    return [a - b, b - a] if isinstance(guard, sympy.Eq) else []


def _definition(term: sympy.Expr) -> list[sympy.Expr]:
    """What always holds for a Max, a Min, a floor division by a positive constant, or a product of sizes."""
    if isinstance(term, torch_private.MAX_CLASSES):
        return [term - a for a in term.args]
    if isinstance(term, torch_private.MIN_CLASSES):
        return [a - term for a in term.args]
    if isinstance(term, torch_private.FLOORDIV_CLASSES) and term.args[1].is_Integer and term.args[1] > 0:
        a, b = term.args
        return [a - b * term, b * term + b - 1 - a]
    return [term] if isinstance(term, sympy.Mul) and _never_negative(term) else []


def _never_negative(term: sympy.Expr) -> bool:
    """Whether a product of sizes cannot be negative, from what torch says about its symbols."""
    if isinstance(term, (sympy.Mul, *torch_private.FLOORDIV_CLASSES)):
        return all(_never_negative(a) for a in term.args)
    return bool(term.is_nonnegative)


class Binder:
    """Says which graph input gives each symbol, and evaluates expressions from the arguments of one call.

    Args:
        placeholders: the graph's inputs, in order.
    """

    def __init__(self, placeholders: Sequence[Node]) -> None:
        self.where: dict[sympy.Symbol, tuple[int, int | None]] = {}
        sizes: dict[sympy.Symbol, tuple[int, int | None]] = {}
        for position, node in enumerate(placeholders):
            value = node.meta.get("example_value")
            if isinstance(value, torch.SymInt):
                expr = torch_private.expression(value)
                if isinstance(expr, sympy.Symbol):
                    self.where.setdefault(expr, (position, None))
            elif isinstance(value, torch.Tensor):
                for dim, size in enumerate(value.shape):
                    expr = to_expr(size)
                    if isinstance(expr, sympy.Symbol):
                        sizes.setdefault(expr, (position, dim))
        self.where = {**sizes, **self.where}

    def compile(self, expressions: Sequence[sympy.Expr | int]) -> Callable[[Sequence[Any]], tuple[int, ...]]:
        """A function from the graph's arguments to the values of `expressions`, exact in Python ints.

        Raises:
            KeyError: a symbol is given by no input.
        """
        expressions = [sympy.sympify(e) for e in expressions]
        symbols = sorted(set().union(*(e.free_symbols for e in expressions)), key=str)
        places = [self.where[s] for s in symbols]
        functions = sympy.lambdify(
            symbols,
            [_plain(e) for e in expressions],
            modules=[torch_private.INTEGER_FUNCTIONS],
            cse=len(expressions) > 1,
        )

        def values(args: Sequence[Any]) -> tuple[int, ...]:
            known = [args[i] if dim is None else args[i].shape[dim] for i, dim in places]
            return tuple(int(v) for v in functions(*(int(v) for v in known)))

        return values

    def evaluate(self, expr: sympy.Expr | int, args: Sequence[Any]) -> int:
        """The value of one expression for the arguments of one call. For many, `compile` once."""
        return self.compile([expr])(args)[0]


def _plain(expr: sympy.Expr) -> sympy.Expr:
    """Torch's functions as undefined functions of the same name, which lambdify prints as plain calls."""
    if not expr.args:
        return expr
    args = [_plain(a) for a in expr.args]
    name = type(expr).__name__
    if name in torch_private.INTEGER_FUNCTIONS:
        return sympy.Function(name)(*args)
    return expr.func(*args)
