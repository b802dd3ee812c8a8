"""The source of a kernel: one readable file for each spec, written once and found again by its content.

A file is a template of `kernels` cut down to its spec (`lowering.folding`): what a policy does not need is not in its
kernel. Files lie in `cache_folder()`, named by a hash of their text, so that Triton's own cache of binaries and a
debugger find them; whoever changes a file there changes nothing, as it is written again when it differs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import fill
from types import ModuleType
from typing import Any

from ..kernels.spec import Spec
from ..whole_file import write_whole
from .folding import fold

FOLDER_VARIABLE = "HEADFORCE_CACHE_DIR"
_NOTED = threading.local()


def source_of(kernel: str, spec: Spec) -> str:
    """The text of the file of a kernel; `kernel` names a template of `kernels`, and the function in it."""
    template = importlib.import_module(f"..kernels.{kernel}", __package__)
    title = kernel.replace("_", " ").capitalize()
    heading = f"{title}.\n\n{fill(f'For {spec}.', 110)}\nWritten by headforce from kernels/{kernel}.py.\n"
    return fold(inspect.getsource(template), spec.settings(), [kernel], heading)


def kernel_of(kernel: str, spec: Spec) -> Any:
    """The kernel of a spec, ready to be launched or compiled."""
    folder: Path | None = getattr(_NOTED, "folder", None)
    if folder is not None:
        text = source_of(kernel, spec)
        folder.mkdir(exist_ok=True)
        _written(folder / f"{kernel}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py", text)
    return _kernel_of(kernel, spec)


@cache
def _kernel_of(kernel: str, spec: Spec) -> Any:
    return getattr(load(source_of(kernel, spec)), kernel)


@contextmanager
def sources_to(folder: Path) -> Iterator[None]:
    """The source of every kernel that this thread asks for is written to a folder besides."""
    before, _NOTED.folder = getattr(_NOTED, "folder", None), folder
    try:
        yield
    finally:
        _NOTED.folder = before


def load(text: str) -> ModuleType:
    """The module of a generated text. It comes from a file, as Triton reads the source of its functions."""
    name = f"headforce_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        path = _written(cache_folder() / f"{name}.py", text)
    except OSError:  # a folder of somebody else, or a full disk
        path = _written(_own_folder() / f"{name}.py", text)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _written(path: Path, text: str) -> Path:
    """The file, with this text in it; another process may be writing the same."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path
    write_whole(path, text)
    return path


def cache_folder() -> Path:
    """`$HEADFORCE_CACHE_DIR`, or the user's cache folder; one of this process alone where neither can be written."""
    try:
        folder = _chosen_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # no home is a RuntimeError
        pass
    return _own_folder()


def _chosen_folder() -> Path:
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headforce"


@cache
def _own_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="headforce-"))
