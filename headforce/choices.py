"""What a command was asked for, looked at before the work is done and not behind it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from .errors import HeadforceError, nearest


def check_choices(*, target: str | None = None, inner: str | None = None, verify: str | None = None) -> None:
    """HF-TARGET for a target that does not exist, HF-OPTION for such an inner compiler or such checks."""
    if target is not None:
        from .lowering.targets import find_target

        find_target(target)
    if inner not in (None, "inductor", "eager"):
        import torch

        known = ["inductor", "eager", *torch._dynamo.list_backends(exclude_tags=())]
        if inner not in known:
            close = nearest(str(inner), known)
            raise HeadforceError(
                "HF-OPTION", site="inner", found=f"{inner!r}{close}", needed="inductor, eager or another torch backend"
            )
    if verify is not None:
        from .lowering.verify import Verification

        Verification.of(verify, 1)


def check_device(device: Any) -> None:
    """HF-OPTION for a device that torch does not have on this machine."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise HeadforceError(
            "HF-OPTION", site="device", found=f"{device} ({why})", needed="a device that this machine has"
        ) from error


def new_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: one that cannot be written is refused at once."""
    if path is None:
        return None
    try:
        if path.is_dir():
            raise click.FileError(str(path), "it is a folder")
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.exists() and not os.access(path, os.W_OK):
            raise click.FileError(str(path), "it cannot be written")
    except OSError as error:
        raise click.FileError(str(path), f"its folder cannot be written ({error.strerror})") from error
    return path
