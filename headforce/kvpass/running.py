"""The calls of prepared models that are under way in this thread, one inside the other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import HeadforceError
from .layers import Caches, Layer

if TYPE_CHECKING:
    from .session import Session

_THREAD = threading.local()


def _calls() -> list[Running]:
    calls: list[Running] = _THREAD.__dict__.setdefault("calls", [])
    return calls


@dataclass
class Running:
    """One call of a prepared model.

    Attributes:
        caches: of the stream that it goes on with. launched: how often each of their layers had run before.
        around: what holds while it runs. handled: the error that was being handled when it began, which is not its own.
        refusal: what a graph in it was refused for.
    """

    session: Session
    caches: Caches
    launched: tuple[int, ...]
    around: ExitStack
    handled: BaseException | None
    refusal: HeadforceError | None = None

    @property
    def failed(self) -> bool:
        """Whether an error is on its way out of it."""
        return sys.exc_info()[1] is not self.handled

    @property
    def odd(self) -> list[tuple[Layer, int]]:
        """The layers that it ran another number of times than once, and how often."""
        ran = [layer.launches - before for layer, before in zip(self.caches.layers, self.launched, strict=True)]
        return [(layer, times) for layer, times in zip(self.caches.layers, ran, strict=True) if times != 1]


def begin(session: Session, caches: Caches, *around: AbstractContextManager[object]) -> None:
    """A call of the model of `session` begins, and what is `around` it is entered."""
    with ExitStack() as entered:
        for context in around:
            entered.enter_context(context)
        launched = tuple(layer.launches for layer in caches.layers)
        _calls().append(Running(session, caches, launched, entered.pop_all(), sys.exc_info()[1]))


def end(session: Session) -> Running | None:
    """The innermost call is over. None if that is not one of this session: its own failed before it began."""
    if active_session() is not session:
        return None
    call = _calls().pop()
    call.around.close()
    return call


def active_session() -> Session | None:
    """The session whose model is running in this thread."""
    calls = _calls()
    return calls[-1].session if calls else None


@contextmanager
def recording_refusals() -> Iterator[None]:
    """A refusal inside is remembered by the innermost call, which raises it even where the compiler swallows it."""
    calls = _calls()
    try:
        yield
    except HeadforceError as error:
        if calls:
            calls[-1].refusal = error
        raise
