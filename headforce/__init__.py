"""headforce: every attention head of an autoregressive video model gets its own KV cache, by compiler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import HeadforceError
from .policy import Policy

if TYPE_CHECKING:
    from .kvpass.explain import explain
    from .kvpass.explanation import Explanation
    from .kvpass.probe import Probe, probe
    from .kvpass.session import Session, prepare

__all__ = ["Explanation", "HeadforceError", "Policy", "Probe", "Session", "__version__", "explain", "prepare", "probe"]

# Policies work without torch, so what needs torch is imported when it is asked for.
_LAZY = {
    "Explanation": ".kvpass.explanation",
    "Probe": ".kvpass.probe",
    "Session": ".kvpass.session",
    "explain": ".kvpass.explain",
    "prepare": ".kvpass.session",
    "probe": ".kvpass.probe",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
