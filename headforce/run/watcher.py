"""Sees the models of a script when they are called, and prepares those of known families before their first pass.

`torch.nn.Module.__call__` is where every call of a model begins. torch's global pre-hooks come too late: they do not
see keyword arguments, where most models take their cache, and run when the forward to be called is already chosen.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from ..errors import HeadforceError
from .family import family_of, made_by_torch
from .record import ModelRecord, ProcessRecord
from .settings import EAGER, RunSettings

if TYPE_CHECKING:
    from ..kvpass.capture import Adapter
    from ..kvpass.layers import Layer
    from ..kvpass.session import Session

Call = Callable[..., Any]


@dataclass(eq=False)
class Seen:
    """A model of a known family.

    Attributes:
        session: the one it was given here, if it was.
        launches: of all layers, so far. counted: of each layer, those that are in it; layers go with their stream.
    """

    adapter: Adapter
    record: ModelRecord
    session: Session | None = None
    launches: int = 0
    counted: WeakKeyDictionary[Layer, int] = field(default_factory=WeakKeyDictionary)

    def ran(self, session: Session) -> None:
        """A pass is over."""
        for layer in (layer for caches in session.cache_sets for layer in caches.layers):
            self.launches += layer.launches - self.counted.get(layer, 0)
            self.counted[layer] = layer.launches
        self.record.ran(session, self.launches)


class Watcher:
    """Stands in front of every module of the process.

    Args:
        settings: what to do to models. record: what to report of them.
    """

    def __init__(self, settings: RunSettings, record: ProcessRecord) -> None:
        self.settings = settings
        self.record = record
        self._seen: WeakKeyDictionary[nn.Module, Seen] = WeakKeyDictionary()
        self._others: WeakSet[nn.Module] = WeakSet()
        self._lock = threading.RLock()
        self._thread = threading.local()

    def install(self) -> Callable[[], None]:
        """Begins; calling what is returned ends it."""
        original: Call = nn.Module.__call__

        @functools.wraps(original)
        def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # A compiler that traces a call finds nothing here.
            if torch.compiler.is_dynamo_compiling():
                return original(module, *args, **kwargs)
            return self._called(original, module, args, kwargs)

        nn.Module.__call__ = __call__  # type: ignore[method-assign]

        def undo() -> None:
            nn.Module.__call__ = original  # type: ignore[method-assign]

        return undo

    def _called(self, original: Call, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # Parts of a model may look like models of their own: blocks take caches too.
        if module in self._others or getattr(self._thread, "inside", False):
            return original(module, *args, **kwargs)
        model = getattr(module, "_orig_mod", module)
        seen = self._seen.get(model) or self._look_at(model)
        if seen is None:
            self._others.add(module)
            if model is not module:
                self.record.compiled[type(model).__qualname__] = None
            return original(module, *args, **kwargs)
        with self._inside():
            if self.settings.mode == EAGER:
                return self._watched(original, module, model, seen, args, kwargs)
            return self._rewritten(original, module, model, seen, args, kwargs)

    def _look_at(self, model: nn.Module) -> Seen | None:
        """The adapters are asked about a module once, when it is first called."""
        if made_by_torch(type(model)):
            return None
        with self._lock:
            adapter = family_of(model)
            if adapter is None:
                if next(model.children(), None) is not None:
                    self.record.called[type(model).__qualname__] = None
                return None
            if model not in self._seen:
                self._seen[model] = Seen(adapter, ModelRecord(type(model).__qualname__))
                self.record.models.append(self._seen[model].record)
            return self._seen[model]

    def _watched(
        self,
        original: Call,
        module: nn.Module,
        model: nn.Module,
        seen: Seen,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        caches = seen.adapter.caches(model, args, kwargs)
        seen.record.passes += bool(caches)
        seen.record.dense = max(seen.record.dense, sum(t.nbytes for cache in caches for t in cache.tensors()))
        return original(module, *args, **kwargs)

    def _rewritten(
        self,
        original: Call,
        module: nn.Module,
        model: nn.Module,
        seen: Seen,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        try:
            if seen.session is None and not self._prepared(model, seen, args, kwargs):
                return original(module, *args, **kwargs)
            assert seen.session is not None
            # The model itself, not what the script's own torch.compile made of it: it is compiled by headforce.
            result = original(model, *args, **kwargs)
            with self._lock:
                seen.ran(seen.session)
                self.record.save_sometimes()
        except HeadforceError as error:
            seen.record.refusal = str(error)
            self.record.save()
            raise
        return result

    def _prepared(self, model: nn.Module, seen: Seen, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the model has a session now: calls without a cache are none of our business, nor are models that
        the script itself has prepared."""
        from ..kvpass.session import prepare, session_of

        with self._lock:
            if seen.session is not None:
                return True
            if session_of(model) is not None or not seen.adapter.caches(model, args, kwargs):
                return False
            given = self.settings
            session = prepare(model, given.policy, labels=given.labels, mode=given.mode, verify=given.verify)
            session.compile(**given.options)
            seen.session = session
            return True

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self._thread.inside = True
        try:
            yield
        finally:
            self._thread.inside = False
