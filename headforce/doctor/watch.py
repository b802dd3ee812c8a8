"""Running a copy of a model under Dynamo and writing down what happens."""

from __future__ import annotations

import functools
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..calls import Example
from ..errors import HeadforceError
from ..kvpass.breaks import Break, break_of, watched_breaks
from ..kvpass.capture import Adapter, find_known
from ..kvpass.explanation import SiteFacts
from ..kvpass.observer import Observer, Ran
from ..kvpass.torch_private import without_recompile_limit


@dataclass
class Watched:
    """What one way to run the calls showed.

    Attributes:
        graphs: for each call, how many graphs were compiled in it. breaks: where graphs ended.
        sites: every attention call, each time it ran. newest: the sites of the last call that had any.
        error: what ended the run early, or None.
    """

    graphs: list[int] = field(default_factory=list)
    breaks: list[Break] = field(default_factory=list)
    sites: list[SiteFacts] = field(default_factory=list)
    newest: list[Ran] = field(default_factory=list)
    error: Break | None = None


def watch(example: Example, *, adapted: bool) -> Watched:
    """Runs the calls of an example on a copy, as it is or (`adapted`) with what its adapter puts in place.

    The copy shares its weights with the original and nothing else. Compiled code of the whole process is dropped
    before and after: Dynamo says nothing about a graph that it has, and does not look again at what it gave up.

    Raises HF-EXAMPLE if a part of the example cannot be copied, or if no call reaches the model.
    """
    copied = example.copied()
    model, adapter, _ = known_model(copied.model)
    used = adapter if adapted else None
    seen, observer = Watched(), Observer()
    torch._dynamo.reset()
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            stack.enter_context(torch.no_grad())
            stack.enter_context(without_recompile_limit())
            if used is not None:
                stack.enter_context(used.install(model))
            _intercept(model, used, observer, seen)
            seen.breaks = stack.enter_context(watched_breaks())
            try:
                copied.run()
            except Exception:
                if seen.error is None:  # it was not the model that failed
                    raise
    finally:
        torch._dynamo.reset()
    if not seen.graphs:
        raise HeadforceError(
            "HF-EXAMPLE", found="calls that do not reach the model", needed="calls of the model that is handed over"
        )
    seen.sites = list(observer.lines())
    return seen


class Known(NamedTuple):
    """The model that is meant, the adapter that knows it, and why `prepare` does not take it, if it does not."""

    model: nn.Module
    adapter: Adapter | None
    refusal: HeadforceError | None


def known_model(target: Any) -> Known:
    """What is known about a model, or about the one in a pipeline. HF-ADAPTER for a pipeline of unknown models."""
    target = getattr(target, "_orig_mod", target)
    try:
        model, adapter = find_known(target)
    except HeadforceError as error:
        if isinstance(target, nn.Module):
            return Known(target, None, error)
        raise
    return Known(model, adapter, adapter.refusal(model))


def _intercept(model: nn.Module, adapter: Adapter | None, observer: Observer, seen: Watched) -> None:
    """From now on every call of the copy runs under Dynamo and is written down."""
    forward = model.forward
    compiled = torch.compile(forward, backend=observer)

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        graphs, ran = len(observer.reports), len(observer.ran)
        try:
            with nullcontext() if adapter is None else adapter.traceable(model, args, kwargs):
                return compiled(*args, **kwargs)
        except Exception as error:
            seen.error = break_of(error)
            raise
        finally:
            seen.graphs.append(len(observer.reports) - graphs)
            seen.newest = observer.ran[ran:] or seen.newest

    model.forward = call
