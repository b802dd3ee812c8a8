"""The streams of a prepared model: which caches belong together, and which are still in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ..errors import HeadforceError
from ..policy import Answer
from .capture import LayerCache
from .layers import Caches, Layer, layer_of
from .owned_caches import OwnedCaches


class Streams:
    """The streams of one prepared model.

    Args:
        adopt: makes a stream of caches that belong to none.

    Attributes:
        all: oldest first.
    """

    def __init__(self, adopt: Callable[[Sequence[LayerCache]], Caches]) -> None:
        self._adopt = adopt
        self.all: list[Caches] = []

    @property
    def owned(self) -> list[OwnedCaches]:
        """Those whose K and V headforce holds."""
        return [caches for caches in self.all if isinstance(caches, OwnedCaches)]

    def of_call(self, caches: Sequence[LayerCache]) -> Caches:
        """The stream that the model is called with; HF-ADOPT if these caches are not one whole stream's."""
        layers = [layer_of(cache.tensors()[0]) for cache in caches]
        if all(layer is None or layer.caches.session is None for layer in layers):
            self.forget_unused()
            current = self._adopt(caches)
            self.all.append(current)
        else:
            current = self._known(layers)
            current.see_reset()
        return current

    def _known(self, layers: Sequence[Layer | None]) -> Caches:
        numbers = [layer.number for layer in layers if layer is not None]
        streams = {id(layer.caches): layer.caches for layer in layers if layer is not None}
        if len(streams) != 1 or numbers != list(range(len(layers))):
            raise HeadforceError(
                "HF-ADOPT", found="caches of several streams, or out of order", needed="one stream's, layer by layer"
            )
        (current,) = streams.values()
        if current not in self.all:
            raise HeadforceError(
                "HF-ADOPT", found="a cache that another prepared model owns", needed="a cache of this model"
            )
        return current

    def forget_unused(self) -> None:
        """Releases the streams whose caches nobody refers to any more."""
        for caches in self.all:
            if not caches.in_use:
                caches.release()
        self.all = [caches for caches in self.all if caches.in_use]

    def release(self) -> bool:
        """Ends all of them. False if the model cannot tell that what its caches held is gone."""
        emptied = []
        with ExitStack() as ended:  # every one of them, whatever becomes of another
            for caches in self.all:
                if isinstance(caches, OwnedCaches) and caches.running:
                    emptied += [cache.forget() for cache in caches.caches]
                ended.callback(caches.release)
            self.all = []
        return all(emptied)

    def running(self, kv_cache: Sequence[Any] | None) -> list[OwnedCaches]:
        """The streams with these caches, all if none are given, that have begun.

        Raises HF-ADOPT for caches of no stream, HF-CLOCK if none has begun.
        """
        self.forget_unused()
        meant = self.owned
        if kv_cache is not None:
            given = {id(cache) for cache in kv_cache}
            meant = [stream for stream in meant if {id(cache.owner()) for cache in stream.caches} == given]
            if not meant:
                raise HeadforceError("HF-ADOPT", site="kv_cache", found="caches of no stream", needed="those of a call")
        running = [stream for stream in meant if stream.running]
        if not running:
            raise HeadforceError("HF-CLOCK", found="a prompt switch before the first pass", needed="one between chunks")
        return running


def switch_all(streams: Sequence[OwnedCaches], answer: Answer | None) -> list[int]:
    """Switches all of them; a refusal by one leaves the others as they were."""
    undo: list[Callable[[], None]] = []
    try:
        again = []
        for stream in streams:
            take_back = stream.saved()
            again.append(stream.switch(answer))
            undo.append(take_back)
    except HeadforceError:
        for take_back in undo:
            take_back()
        raise
    return again
