"""The source of a kernel: one readable file for each spec, written once and found again by its content.

A file is a template of `kernels` cut down to its spec (`lowering.folding`): what a policy does not need is not in its
kernel. Files lie in `cache_folder()`, named by a hash of their text, so that Triton's own cache of binaries and a
debugger find them; whoever changes a file there changes nothing, as it is written again when it differs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import tempfile
from functools import cache
from pathlib import Path
from textwrap import fill
from types import ModuleType

from ..kernels import ragged_attention
from ..kernels.spec import Spec
from .folding import fold

FOLDER_VARIABLE = "HEADFORCE_CACHE_DIR"
ENTRIES = {"ragged_attention": ("ragged_attention", "combine_parts")}


def source_of(spec: Spec) -> str:
    """The text of the kernel's file."""
    entries = ENTRIES["ragged_attention"] if spec.parts else ("ragged_attention",)
    heading = (
        f"Ragged attention.\n\n{fill(f'For {spec}.', 110)}\nWritten by headforce from kernels/ragged_attention.py.\n"
    )
    return fold(inspect.getsource(ragged_attention), spec.settings(), entries, heading)


@cache
def kernels_of(spec: Spec) -> ModuleType:
    """The module with the kernels of a spec: `ragged_attention`, and `combine_parts` where reads are cut into parts."""
    return load(source_of(spec))


def load(text: str) -> ModuleType:
    """The module of a generated text. It comes from a file, as Triton reads the source of its functions."""
    name = f"headforce_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = cache_folder() / f"{name}.py"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        os.replace(file.name, path)  # another process may be writing the same
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def cache_folder() -> Path:
    """`$HEADFORCE_CACHE_DIR`, or the user's cache folder; one of this process alone where neither can be written."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else base / "headforce"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return _own_folder()


@cache
def _own_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="headforce-"))
