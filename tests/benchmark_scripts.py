"""The scripts of `benchmarks` as modules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = str(Path(__file__).resolve().parents[1] / "benchmarks")


def load(name: str) -> ModuleType:
    """A script of `benchmarks` as a module. Its folder is on the path only meanwhile."""
    sys.path.insert(0, FOLDER)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(FOLDER)
