"""headforce: every attention head of an autoregressive video model gets its own KV cache, by compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import HeadforceError
from .policy import Policy

if TYPE_CHECKING:
    from .kvpass.session import Session, prepare

__all__ = ["HeadforceError", "Policy", "Session", "__version__", "prepare"]


def __getattr__(name: str) -> Any:
    # Policies work without torch, so what needs torch is imported when it is asked for.
    if name in ("prepare", "Session"):
        from .kvpass import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
