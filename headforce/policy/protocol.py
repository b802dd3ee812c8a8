"""What an operator has to define, and what one lacks of it."""

from __future__ import annotations

from .memory import PagedStore, StoreOp
from .op import Op

OF_OPERATORS = ("frames", "materialize", "bound", "settles")
OF_STORES = ("units", "bound")
OF_PAGED_STORES = (*OF_STORES, "pages", "most_parts", "parts", "materialize_part", "before")


def lacks(kind: type[Op]) -> list[str]:
    """The methods that an operator does not define although it has to, by name."""
    names = OF_PAGED_STORES if kind.paged else OF_STORES if kind.stateful else OF_OPERATORS
    bases = (Op, StoreOp, PagedStore)
    return [name for name in names if _defined(kind, name) in [_defined(base, name) for base in bases]]


def _defined(kind: type[Op], name: str) -> object:
    return getattr(kind, name, None)
