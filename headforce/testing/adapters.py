"""The laws of an adapter: the model is found, runs as it would by itself under `native()`, and comes back unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kvpass.capture.adapter import adapters, find_model
from ..kvpass.owned_caches import OwnedCaches
from ..kvpass.session import Session, prepare
from ..policy import Policy, parse_rule
from ..registered import own_docstring
from .asserts import assert_rewritten
from .laws import about

Play = Callable[[Any], Sequence[Tensor]]

NATIVE = Policy({})
DROPPED = Policy({"none": parse_rule("drop()")}, heads={0: {"none": (0,)}})
"""One head of the first layer forgets everything: a difference that has to show."""


def check_adapter(name: str, model: nn.Module, play: Play, *, tolerance: float = 1e-5, bitwise: bool = True) -> None:
    """Every law for one adapter; AssertionError names the adapter and the law.

    Args:
        model: a small model of its family, in eval mode, with peaked attention (`headforce.testing.peak`).
        play: runs a model or its compiled form and returns what it made: at least two videos in a row with the same
            caches, the last one so long that the model's cache evicts. It has to give the same every time.
        tolerance: the largest difference, as a share of the largest value, that is put down to rounding.
        bitwise: whether compiled and eager model agree bit by bit where keys are read in the order of their frames.
    """
    with about(f"adapter {name}"), torch.no_grad():
        (adapter,) = [candidate for candidate in adapters() if candidate.name == name]
        assert own_docstring(type(adapter)), "it lacks a docstring"
        found, chosen = find_model(model)
        assert found is model, f"it takes {type(found).__name__} for the model"
        assert chosen is adapter, f"{chosen.name} goes before it for this model"
        assert not adapter.matches(nn.Linear(2, 2)), "it matches a linear layer"
        eager = list(play(model))
        assert len(eager) > 1, "play() makes one video only, and never starts again"
        _same(play(model), eager, 0, "play() does not give the same twice")
        torch._dynamo.reset()
        torch.compile(model, backend="eager")  # which leaves a mark of its own
        before = _state(model)
        compiled = _compiled(model, play, NATIVE, name)
        _same(compiled, eager, 0 if bitwise else tolerance, "under native() the compiled model is not the model")
        assert _state(model) == before, "restore() leaves something behind on the model"
        _same(play(model), eager, 0, "restore() leaves a model that computes something else")
        dropped = _compiled(model, play, DROPPED, name)
        shown = max(_difference(a, b) for a, b in zip(dropped, eager, strict=True))
        assert shown > 10 * tolerance, f"a head that forgets everything changes {shown:.1e}: attention is not peaked"


def _compiled(model: nn.Module, play: Play, policy: Policy, name: str) -> list[Tensor]:
    """What the prepared and compiled model makes; its attention was rewritten, and its cache did evict."""
    with prepare(model, policy, canonical_order=True, verify="plan") as session:
        assert session.adapter.name == name
        made = list(play(torch.compile(model, backend="headforce", options={"inner": "eager"})))
        assert_rewritten(session)
        assert _evicted(session), "the cache never evicts in the last video: play() a longer one"
    return made


def _evicted(session: Session) -> bool:
    return any(
        layer.evicted for caches in session.cache_sets if isinstance(caches, OwnedCaches) for layer in caches.layers
    )


def _state(model: nn.Module) -> list[Any]:
    """What a session might leave on a model."""
    return [
        (name, sorted(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]


def _same(made: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float, otherwise: str) -> None:
    for i, (a, b) in enumerate(zip(made, wanted, strict=True)):
        off = _difference(a, b)
        assert off <= tolerance, f"{otherwise}: video {i} differs by {off:.1e}"


def _difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())
