"""Replacing a name of a module while prepared models run: counted, so that models side by side do no harm."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.Lock()
_ACTIVE: dict[tuple[int, str], tuple[int, Any, Any]] = {}
"""(namespace, name) -> (how many want it, the original, the replacement)."""

_MISSING = object()


@contextlib.contextmanager
def patched(namespace: dict[str, Any], name: str, replacement: Any) -> Iterator[None]:
    """While the context is open, `namespace[name]` is `replacement`; the last one to leave puts the original back.

    A namespace is what a function sees, `function.__globals__`: two checkouts may have modules of one name. The first
    replacement of a name stays for as long as anybody wants one, so that compiled code sees one object.
    """
    key = (id(namespace), name)
    with _LOCK:
        count, original, current = _ACTIVE.get(key, (0, namespace.get(name, _MISSING), replacement))
        _ACTIVE[key] = (count + 1, original, current)
        namespace[name] = current
    try:
        yield
    finally:
        with _LOCK:
            count, original, current = _ACTIVE[key]
            if count > 1:
                _ACTIVE[key] = (count - 1, original, current)
            else:
                del _ACTIVE[key]
                if original is _MISSING:
                    del namespace[name]
                else:
                    namespace[name] = original
