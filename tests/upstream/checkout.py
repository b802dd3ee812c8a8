"""Importing single files of a checkout, without what its packages import besides."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Anything(types.ModuleType):
    """A module in place of one that is not needed: every name in it is a class without contents."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Checkout:
    """A checkout whose packages are empty, so that each of its files can be imported by itself.

    Args:
        path: the root of the checkout. packages: names of packages of it, whose `__init__` is not run.
        stand_ins: modules that are needed in name only, each with the values it has to have.
    """

    def __init__(
        self, path: Path, packages: Sequence[str], stand_ins: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.path = path
        sys.path.append(str(path))  # for files that are in no package
        for name in packages:
            folder = path / name.replace(".", "/")
            if not folder.is_dir():
                raise SystemExit(
                    f"{path} has no folder {name.replace('.', '/')}: another repository, or another branch"
                )
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]  # type: ignore[attr-defined]
            sys.modules[name] = package
        for name, values in (stand_ins or {}).items():
            sys.modules[name] = Anything(name)
            vars(sys.modules[name]).update(values)

    def load(self, name: str) -> Any:
        """The module `name` of the checkout."""
        return importlib.import_module(name)
