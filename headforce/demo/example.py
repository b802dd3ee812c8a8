"""The example model. It lives in `examples/` of a checkout, outside the package, and is imported from there."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import nn

from ..errors import HeadforceError, nearest

ModelT = TypeVar("ModelT", bound=nn.Module)


def examples_folder() -> Path:
    """The `examples` folder: beside the package in a checkout, else in the current directory. HF-DEMO without one."""
    beside = Path(__file__).resolve().parents[2] / "examples"
    for folder in (beside, Path.cwd() / "examples"):
        if folder.is_dir():
            return folder
    raise HeadforceError("HF-DEMO", found=f"no folder {beside}", needed="the examples of a checkout")


def load_example(name: str) -> ModuleType:
    """The package of the example called `name` ("causal-wan" is examples/causal_wan); HF-DEMO if there is none."""
    folder = examples_folder()
    known = {path.parent.name.replace("_", "-"): path for path in sorted(folder.glob("*/__init__.py"))}
    if name not in known:
        raise HeadforceError(
            "HF-DEMO",
            site="--model",
            found=f"{name!r}{nearest(name, known)}",
            needed="one of " + (", ".join(known) or f"the examples that are missing from {folder}"),
        )
    # Under a name of its own: `examples` may be another package where headforce is installed.
    full_name = "headforce_example_" + name.replace("-", "_")
    if full_name not in sys.modules:
        file = known[name]
        spec = importlib.util.spec_from_file_location(full_name, file, submodule_search_locations=[str(file.parent)])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def twin(model: ModelT) -> ModelT:
    """A second model with the same weights, which are not copied."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
