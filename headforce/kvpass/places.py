"""Where a node comes from: the module's path and the line of the model's source."""

from __future__ import annotations

import os
import re
import sys
import sysconfig

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_ROOT = re.compile(r"^L(\['[^']*'\]|__\w+)?\.?")
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_PYTHON = os.path.abspath(sysconfig.get_path("stdlib")) + os.sep
_PACKAGES = ("site-packages", "dist-packages")  # where others' packages lie in Python's own folder


def module_path(node: Node) -> str:
    """The path of the innermost module, such as "blocks.0.self_attn"; empty if the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    if not entries:
        return ""
    last = entries[-1]
    path = last[0] if isinstance(last, tuple) else str(last)
    steps = _ROOT.sub("", path).replace("['", ".").replace("']", "").replace("[", ".").replace("]", "").split(".")
    return ".".join(step for step in steps if step not in ("", "__dict__", "_modules"))


def source_line(node: Node) -> str:
    """file:line of the innermost frame in the file of the innermost module; of the model's own code if it is not on the
    way, and empty if the graph does not say. Libraries send all attention through one dispatcher, which tells nothing.
    """
    trace = node.meta.get("stack_trace") or ""
    home = _home(node)
    at_home = [f for f in _FRAME.findall(trace) if home and os.path.abspath(f[0]) == home]
    return ":".join(at_home[-1]) if at_home else own_line(trace)


def _home(node: Node) -> str:
    """The file that defines the class of the innermost module; empty if that is torch's or unknown."""
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    kind = entries[-1][1] if entries and isinstance(entries[-1], tuple) else None
    file = getattr(sys.modules.get(getattr(kind, "__module__", "")), "__file__", None)
    return "" if file is None or _is_foreign(file) else os.path.abspath(file)


def own_line(traceback: str) -> str:
    """file:line of the innermost frame in a traceback that is neither torch's nor Python's; of the innermost at all if
    there is none, and empty without frames."""
    frames = [m.group("file", "line") for m in _FRAME.finditer(traceback)]
    own = [frame for frame in frames if not _is_foreign(frame[0])] or frames
    return ":".join(own[-1]) if own else ""


def _is_foreign(file: str) -> bool:
    path = os.path.abspath(file)
    python_s = path.startswith(_PYTHON) and not any(name in path for name in _PACKAGES)
    return path.startswith(_TORCH) or python_s


def unique(names: list[str]) -> list[str]:
    """The names, with #2, #3, ... behind the second and later uses of one; "site0", "site1", ... where empty."""
    seen: dict[str, int] = {}
    out = []
    for i, name in enumerate(names):
        name = name or f"site{i}"
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return out
