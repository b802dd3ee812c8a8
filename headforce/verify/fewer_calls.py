"""Rollouts that make only some of the calls of an example."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..calls import Example
from ..kvpass.capture import Call, find_model, modules_of


class _Enough(BaseException):
    """Ends a function that calls a model. It is no `Exception`: such a function may catch those."""


def only_calls(example: Example, chosen: Sequence[int] | None) -> Example:
    """The example with the calls of these numbers alone, in their order; None leaves all.

    Where a function makes the calls, it is stopped behind the last of the first n; any other choice is played again
    from what the function passed in an eager rollout.
    """
    if chosen is None:
        return example
    if not callable(example.calls):
        return replace(example, calls=[example.calls[i] for i in chosen if i < len(example.calls)])
    if list(chosen) == list(range(len(chosen))):
        return replace(example, calls=lambda given: _first(example, given, len(chosen)))
    made = _calls_made(example, max(chosen) + 1)
    return Example(find_model(made.model)[0], [made.calls[i] for i in chosen if i < len(made.calls)])  # type: ignore[index, arg-type]


def _first(example: Example, given: Any, count: int) -> None:
    """The first calls of a function."""
    made = 0

    def stop(*_: Any) -> None:
        nonlocal made
        made += 1
        if made == count:
            raise _Enough

    hook = find_model(given)[0].register_forward_hook(torch._dynamo.disable(stop))
    try:
        example.calls(given)  # type: ignore[operator]
    except _Enough:
        pass
    finally:
        hook.remove()


def _calls_made(example: Example, count: int) -> Example:
    """The example with the calls themselves in place of the function that makes them.

    An object that comes in several calls, such as a cache, is one object in all of them, as it was before the first of
    them. The tensors that are passed by themselves are those of each call, unless they are a cache.
    """
    played = example.copied()
    model, adapter = find_model(played.model)
    memo: dict[int, Any] = {id(w): w for m in modules_of(played.model) for w in m.parameters(recurse=False)}
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = {id(tensor) for layer in adapter.caches(model, args, kwargs) for tensor in layer.tensors()}
        calls.append(copy.deepcopy((list(args), kwargs), memo))
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and id(value) not in caches:
                memo.pop(id(value), None)

    with _hooked(model, note), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        only_calls(played, range(count)).run()
    return Example(example.model, calls)


@contextmanager
def _hooked(model: nn.Module, note: Any) -> Any:
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
