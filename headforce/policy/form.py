"""Whether a rule is whole: every store has its source, and every operator stands where it has a meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ..errors import HeadforceError
from .node import Intersection, Node, Term, terms_of
from .op import SCOPES

if TYPE_CHECKING:
    from .rule import Rule


def check_form(rule: Rule) -> None:
    """HF-RULE-FORM if stores lack a name or a source, or if an operator stands where it has no meaning."""
    if not rule.reads_chunk and rule.node != rule.terms[0]:
        _refuse(f"{rule.node}, where one operator reads nothing at all", "such an operator alone")
    _check_filters(rule.node)
    for term in rule.stateful:
        _check_names(rule, term)
        _check_source(rule, term)
    _check_chains(rule)


def _check_names(rule: Rule, term: Term) -> None:
    names = [other.store for other in rule.terms]
    for name in filter(None, (term.store, term.op.feeds_from)):
        if names.count(name) != 1:
            _refuse(
                f"{names.count(name) or 'no'} operators called {name!r}, which {term} refers to",
                "exactly one",
                "Give an operator a name of its own with `as`: window(4) as recent.",
            )


def _check_source(rule: Rule, term: Term) -> None:
    """What feeds a store lets whole frames go, and the same ones for all heads that decide together."""
    source = next((other for other in rule.terms if other.store == term.op.feeds_from), None)
    if source is None:
        return
    if source.op.paged:
        _refuse(f"{term}, fed by {source}, which keeps parts of frames", "an operator that lets whole frames go")
    scope = source.op.scope
    if source.op.stateful and SCOPES.index(term.op.scope) > SCOPES.index(scope):
        found = f"{term}, in which heads decide together, fed by {source}, of which each {scope} has its own"
        _refuse(found, f"scope={scope}")


def _check_chains(rule: Rule) -> None:
    feeders = {term.store: term.op.feeds_from for term in rule.stateful}
    for term in rule.stateful:
        chain = [term.store]
        while feeders.get(chain[-1]):
            chain.append(feeders[chain[-1]])
            if chain[-1] in chain[:-1]:
                _refuse("stores that feed each other: " + " <- ".join(chain), "a chain that ends")


def _check_filters(node: Node) -> None:
    """A store with pages of its own has no whole frames to keep others by, behind an `&`."""
    if isinstance(node, Term):
        return
    if isinstance(node, Intersection):
        for term in (term for part in node.parts[1:] for term in terms_of(part)):
            if term.op.paged:
                _refuse(f"{term} behind & in {node}", "it in front: what filters holds frames")
    for part in node.parts:
        _check_filters(part)


def _refuse(found: str, needed: str, hint: str = "") -> NoReturn:
    raise HeadforceError("HF-RULE-FORM", found=found, needed=needed, **({"hint": hint} if hint else {}))
