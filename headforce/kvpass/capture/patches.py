"""Replacing a name of a module while prepared models run: counted, so that models side by side do no harm."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()
_ACTIVE: dict[tuple[str, str], tuple[int, Any, Any]] = {}
"""(module, name) -> (how many want it, the original, the replacement)."""


@contextlib.contextmanager
def patched(module: ModuleType, name: str, replacement: Any) -> Iterator[None]:
    """While the context is open, `module.name` is `replacement`; the last one to leave puts the original back.

    The first replacement of a name stays for as long as anybody wants one, so that compiled code sees one object.
    """
    key = (module.__name__, name)
    with _LOCK:
        count, original, current = _ACTIVE.get(key, (0, getattr(module, name, None), replacement))
        _ACTIVE[key] = (count + 1, original, current)
        setattr(module, name, current)
    try:
        yield
    finally:
        with _LOCK:
            count, original, current = _ACTIVE[key]
            if count > 1:
                _ACTIVE[key] = (count - 1, original, current)
            else:
                del _ACTIVE[key]
                setattr(module, name, original)
