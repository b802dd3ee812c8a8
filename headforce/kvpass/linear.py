"""Linear inequalities over the integers: is a set of them impossible?

Fourier-Motzkin elimination on a handful of variables, in exact integer arithmetic. sympy's simplex gives the same
answers and takes about fifty times as long, which for a model of thirty layers is a minute.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from math import gcd

Inequality = tuple[int, frozenset[tuple[Hashable, int]]]
"""constant + sum(coefficient * variable) >= 0."""

_LIMIT = 600  # more inequalities than this is no longer a slice bound; the answer is then "not proved"


def inequality(constant: int, coefficients: Mapping[Hashable, int]) -> Inequality:
    """Normalised: coefficients without a common factor, and the constant rounded down (the variables are integers)."""
    terms = {v: c for v, c in coefficients.items() if c}
    divisor = gcd(*terms.values()) if terms else 1
    return constant // divisor, frozenset((v, c // divisor) for v, c in terms.items())


def impossible(system: Iterable[Inequality]) -> bool:
    """Whether no integers satisfy all inequalities. False also means that it was not shown."""
    rows = set(system)
    while rows:
        if any(not terms and constant < 0 for constant, terms in rows):
            return True
        counts: dict[Hashable, list[int]] = {}
        for _, terms in rows:
            for variable, coefficient in terms:
                counts.setdefault(variable, [0, 0])[coefficient > 0] += 1
        if not counts:
            return False
        variable = min(counts, key=lambda v: counts[v][0] * counts[v][1] - sum(counts[v]))
        rows = _eliminate(rows, variable)
        if len(rows) > _LIMIT:
            return False
    return False


def _eliminate(rows: set[Inequality], variable: Hashable) -> set[Inequality]:
    low, high, out = [], [], {}
    for constant, terms in rows:
        coefficients = dict(terms)
        factor = coefficients.pop(variable, 0)
        if factor == 0:
            _keep(out, (constant, terms))
        else:
            (low if factor > 0 else high).append((abs(factor), constant, coefficients))
    for a, constant_a, terms_a in low:
        for b, constant_b, terms_b in high:
            terms = {v: b * c for v, c in terms_a.items()}
            for v, c in terms_b.items():
                terms[v] = terms.get(v, 0) + a * c
            _keep(out, inequality(b * constant_a + a * constant_b, terms))
    return {(constant, terms) for terms, constant in out.items()}


def _keep(rows: dict, row: Inequality) -> None:
    """Of two rows with the same terms, the tighter one."""
    constant, terms = row
    rows[terms] = min(constant, rows.get(terms, constant))
