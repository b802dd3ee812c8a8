"""The `forward` of a prepared model: a call of it that goes past the model's own call is refused.

Hooks see `model(...)` and nothing else. What calls `model.forward(...)`, or compiles it, has no session around it: its
caches would be filled past the policy, or be shells that hold nothing.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from ..errors import HeadforceError
from .torch_private import run_as_it_is


class GuardedForward:
    """Stands in for `model.forward` until `close`.

    Args:
        model: held weakly, as it holds this.
        may_run: whether a call is one of the session's, or the session looks away.
    """

    def __init__(self, model: nn.Module, may_run: Callable[[], bool]) -> None:
        self._model = weakref.ref(model)
        self._before = vars(model).get("forward")  # an attribute of the instance, where somebody put one
        self._may_run = may_run
        self.__signature__ = inspect.signature(model.forward)
        self.__name__ = "forward"
        # An attribute of the instance hides the method of its class.
        object.__setattr__(model, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Dynamo looks at every frame that begins here, so none does but that of the model.
        self._check()
        model: Any = self._model()
        original = MethodType(type(model).forward, model) if self._before is None else self._before
        return original(*args, **kwargs)

    @torch._dynamo.disable
    def _check(self) -> None:
        if not self._may_run():
            raise HeadforceError(
                "HF-EAGER",
                site=f"{type(self._model()).__qualname__}.forward",
                found="a call of forward, past the call of the prepared model",
                needed="a call of the model itself, model(...), and torch.compile(model) instead of its forward",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The copy of a prepared model is not prepared: its `forward` is its own."""
        twin = memo.get(id(self._model()))
        if twin is None:
            return self
        return MethodType(type(twin).forward, twin) if self._before is None else copy.deepcopy(self._before, memo)

    def close(self) -> None:
        """Puts back what was there, unless somebody has replaced it since."""
        model = self._model()
        if model is None or vars(model).get("forward") is not self:
            return
        if self._before is None:
            object.__delattr__(model, "forward")
        else:
            object.__setattr__(model, "forward", self._before)


run_as_it_is(GuardedForward.__call__)
