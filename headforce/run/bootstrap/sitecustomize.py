"""Run by Python when it starts, before the script: headforce begins once the script has imported torch.

Every Python process of the command runs this, helpers without torch among them, so it imports next to nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


class AfterTorch(MetaPathFinder):
    """Finds torch where the others find it, and begins when it is imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """None for everything but torch."""
        if name != "torch":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                begin()

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def begin() -> None:
    """Watches the script's models. An interpreter without headforce runs on without it, and the command is told."""
    try:
        from headforce.run.child import begin as watch
    except ImportError as error:
        records = json.loads(os.environ["HEADFORCE_RUN"])["records"]
        with open(os.path.join(records, f"{os.getpid()}.json"), "w", encoding="utf-8") as file:
            json.dump({"python": sys.executable, "error": f"{type(error).__name__}: {error}"}, file)
    else:
        watch()


def run_the_other() -> None:
    """Runs the `sitecustomize` that this one hides, if there is one."""
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != HERE]
    ours = sys.modules.pop("sitecustomize")
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", ours)  # importing takes a module back from there


if "HEADFORCE_RUN" in os.environ:
    sys.meta_path.insert(0, AfterTorch())
    run_the_other()
