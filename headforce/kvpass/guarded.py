"""The `forward` of a prepared model: a call of it that goes past the model's own call is refused.

Hooks see `model(...)` and nothing else. What calls `model.forward(...)`, or compiles it, has no session around it: its
caches would be filled past the policy, or be shells that hold nothing.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import HeadforceError
from .torch_private import run_as_it_is

if TYPE_CHECKING:
    from .session import Session


class GuardedForward:
    """Stands in for `model.forward` until `close`.

    Args:
        model, session: held weakly, as the model holds this.
    """

    def __init__(self, model: nn.Module, session: Session) -> None:
        self._model = weakref.ref(model)
        self._before = vars(model).get("forward")  # an attribute of the instance, where somebody put one
        self._session = weakref.ref(session)
        self.__signature__ = inspect.signature(model.forward)
        self.__name__ = "forward"
        # An attribute of the instance hides the method of its class.
        object.__setattr__(model, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Dynamo looks at every frame that begins here, so none does but that of the model.
        self._check()
        model: Any = self._model()
        original = MethodType(type(model).forward, model) if self._before is None else self._before
        try:
            return original(*args, **kwargs)
        except Exception:
            raise
        except BaseException:  # such as Ctrl-C, of which torch tells no hook
            self._interrupted()
            raise

    @torch._dynamo.disable
    def _check(self) -> None:
        session = self._session()
        if session is not None and not session.may_run():
            raise HeadforceError(
                "HF-EAGER",
                site=f"{type(self._model()).__qualname__}.forward",
                found="a call of forward, past the call of the prepared model",
                needed="a call of the model itself, model(...), and torch.compile(model) instead of its forward",
            )

    @torch._dynamo.disable
    def _interrupted(self) -> None:
        session = self._session()
        if session is not None:
            session.interrupted()

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
