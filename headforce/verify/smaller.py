"""Rollouts that are smaller than a given one, in one of the ways in which a rollout can be made smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..calls import sizes_of
from ..policy import Policy, Rule
from .case import Case, Size
from .verdict import Line

Smaller = Callable[[Case, Line], Iterator[Case]]
"""(a case, how it fails) -> smaller cases, those that take away most first."""


def plainer_compiler(case: Case, _: Line) -> Iterator[Case]:
    """Without an inner compiler."""
    if case.way.inner != "eager":
        yield replace(case, way=replace(case.way, inner="eager"))


def shorter(case: Case, failing: Line) -> Iterator[Case]:
    """Only the calls up to the one with which it fails."""
    if failing.call is None:
        return
    whole = range(failing.call + 1) if case.calls is None else case.calls
    if case.calls is None or failing.call + 1 < len(whole):
        yield replace(case, calls=tuple(whole[: failing.call + 1]))


def smaller_model(case: Case, _: Line) -> Iterator[Case]:
    """Smaller sizes for the function that makes the example: layers, heads, frames of a chunk, or what it takes."""
    for name, value in {**sizes_of(case.example), **dict(case.sizes)}.items():
        yield from (case.with_size(name, less) for less in _less(value))


def fewer_calls(case: Case, _: Line) -> Iterator[Case]:
    """Without some of the calls, the last one apart."""
    if case.calls is None:
        return
    *before, last = case.calls
    yield from (replace(case, calls=(*rest, last)) for rest in _without(before))


def plainer_policy(case: Case, _: Line) -> Iterator[Case]:
    """One class for all heads; without a warm-up; one class less; without the exceptions of a layer; one operand."""
    policy = case.policy
    if policy is None or policy.classify is not None:
        return
    yield from (replace(case, policy=less) for less in _plainer(policy))


def fewer_sites(case: Case, _: Line) -> Iterator[Case]:
    """Fewer sites that run on the target."""
    if case.way.target != "reference":
        yield from (replace(case, sites=n) for n in (0, 1, 2, 4, 8, 16) if case.sites is None or n < case.sites)


WAYS: tuple[Smaller, ...] = (plainer_compiler, shorter, plainer_policy, smaller_model, fewer_calls, fewer_sites)
"""Those that make the next attempts cheaper come first."""


def _less(value: Size) -> Iterator[Size]:
    if isinstance(value, int):
        yield from dict.fromkeys(n for n in (1, value // 2, value - 1) if 1 <= n < value)
        return
    yield from (rest for rest in _without(value) if rest)
    for i, one in enumerate(value):
        yield from ((*value[:i], less, *value[i + 1 :]) for less in _less(one) if isinstance(less, int))


def _without(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The items without all, without a half, a quarter and so on, and without one."""
    size = len(items)
    while size:
        for i in range(0, len(items), size):
            yield (*items[:i], *items[i + size :])
        size //= 2


def _plainer(policy: Policy) -> Iterator[Policy]:
    bare = replace(policy, heads={}, layers={}, on_switch={}, made_for=None)
    for name, rule in policy.classes.items():
        alone = replace(bare, classes={name: rule}, default=name)
        if alone != policy:
            yield alone
    for attribute in ("warmup", "position_range", "made_for"):
        if getattr(policy, attribute) is not None:
            yield replace(policy, **{attribute: None})
    for name in policy.classes:
        if len(policy.classes) > 1:
            yield _without_class(policy, name)
    for layer in {**policy.heads, **policy.layers}:
        heads, layers = ({k: v for k, v in of.items() if k != layer} for of in (policy.heads, policy.layers))
        yield replace(policy, heads=heads, layers=layers)
    for name, rule in policy.classes.items():
        if len(rule.terms) > 1:
            yield from (replace(policy, classes={**policy.classes, name: Rule(term)}) for term in rule.terms)


def _without_class(policy: Policy, name: str) -> Policy:
    """The policy whose heads of one class read what the model itself reads."""

    def others(of: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: value for key, value in of.items() if key != name}

    return replace(
        policy,
        classes=others(policy.classes),
        default=None if policy.default == name else policy.default,
        heads={layer: others(by_class) for layer, by_class in policy.heads.items()},
        layers={layer: kind for layer, kind in policy.layers.items() if kind != name},
        on_switch=others(policy.on_switch),
    )
