"""`headforce.explain`: what headforce sees in one call of a model, and what a policy would make of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from ..errors import HeadforceError
from ..policy import Policy
from ..presets import Labels, read_policy
from .breaks import watched_breaks
from .capture import Adapter, find_adapter
from .explanation import Explanation
from .observer import Observer
from .outlook import outlook
from .session import Session, session_of
from .shell import is_shell, make_shell


def explain(
    model: nn.Module,
    *args: Any,
    policy: Policy | str | PathLike[str] | None = None,
    labels: Labels | str | PathLike[str] | None = None,
    **kwargs: Any,
) -> Explanation:
    """What headforce finds in `model(*args, **kwargs)`: every attention call, its cache, its RoPE, and every refusal.

    The model runs once, without being rewritten, on copies of the arguments, so caches that are passed to it are left
    alone, and without gradients. A model that keeps its cache in itself is changed as by any other call.

    Args:
        model: any model, compiled or not, prepared or not. args, kwargs: the arguments of one call, caches included.
        policy: a policy, the path of a file or the name of a preset, to see what it would keep, hold and compute. A
            prepared model has one.
        labels: which heads are what, for presets that ask for it, as in `prepare`.

    Returns an `Explanation`: print it, or take its `to_json()`. A policy that does not fit the model raises.
    """
    model = getattr(model, "_orig_mod", model)
    session = session_of(model)
    own = session.policy if session is not None else None
    if policy is None and labels is not None:
        raise HeadforceError("HF-OPTION", site="labels", found="labels without a policy", needed="a preset as policy")
    given = own if policy is None else read_policy(policy, labels)
    args, kwargs = copy.deepcopy((args, kwargs), _shells(session, model, args, kwargs))
    observer = Observer()
    with torch.no_grad(), _traceable(model, session, args, kwargs) as adapter, watched_breaks() as breaks:
        torch.compile(model, backend=observer)(*args, **kwargs)
    return Explanation(
        model=type(model).__name__,
        family=None if adapter is None else adapter.name,
        prepared=None if session is None else session.mode,
        graphs=len(observer.reports),
        breaks=tuple(breaks),
        sites=tuple(sorted(observer.lines(), key=lambda site: site.graph)),
        outlook=None if given is None else outlook(given, observer.ran, adapter, model),
    )


def _shells(
    session: Session | None, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int, Any]:
    """A memo for `deepcopy` that exchanges shells for other shells: a real copy would take their full size."""
    caches = session.adapter.caches(model, args, kwargs) if session is not None else []
    tensors = [tensor for cache in caches for tensor in cache.tensors() if is_shell(tensor)]
    return {id(tensor): make_shell(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}


@contextlib.contextmanager
def _traceable(
    model: nn.Module, session: Session | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[Adapter | None]:
    """What its family needs to be traced is in place, and a session looks away."""
    with contextlib.ExitStack() as stack:
        adapter: Adapter | None = None
        if session is not None:
            adapter = session.adapter
            stack.enter_context(session.paused())
        else:
            with contextlib.suppress(HeadforceError):
                adapter = find_adapter(model)
            if adapter is not None:
                stack.enter_context(adapter.install(model))
        if adapter is not None:
            stack.enter_context(adapter.traceable(model, args, kwargs))
        yield adapter
