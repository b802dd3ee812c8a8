"""What a user calls a policy: the object, a policy file, the name of a preset, or a file that names one.

headforce: 1
preset: dummy_forcing
arguments: {labels: labels.json, context: 3}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import HeadforceError
from ..policy import Policy
from .labels import Labels
from .registry import make_preset

KEYS = ("headforce", "preset", "arguments")


def names_file(policy: str) -> bool:
    """Whether a file is called so, which goes before a preset of that name. A folder is no policy, and does not."""
    return os.path.isfile(policy)


def read_policy(given: Policy | str | PathLike[str], labels: Labels | str | PathLike[str] | None = None) -> Policy:
    """The policy that is meant.

    Args:
        given: a policy, the path of a policy file, or the name of a preset: a word that no file is called.
        labels: the label file of a preset that needs one.

    Raises HF-PRESET, HF-LABELS, and what `Policy.load` raises.
    """
    arguments = {} if labels is None else {"labels": labels}
    if not isinstance(given, (Policy, str, PathLike)):
        raise HeadforceError("HF-POLICY-FILE", found=f"{given!r}", needed="a policy, a policy file, or a preset's name")
    if isinstance(given, str) and given.isidentifier() and not names_file(given):
        return make_preset(given, **arguments)
    if not isinstance(given, Policy):
        path = Path(given)
        data = _preset_of(path)
        if data is not None:
            return _from_file(path, data, arguments)
        given = Policy.load(path)
    if labels is not None:
        raise HeadforceError(
            "HF-PRESET", site="labels", found="labels for a policy that names its heads itself", needed="a preset"
        )
    return given


def _preset_of(path: Path) -> dict[Any, Any] | None:
    """The document of a file that names a preset; None for any other, of which `Policy.load` says what is wrong."""
    from ..policy.file import document  # lazy: presets themselves need neither YAML nor pydantic

    try:
        data = document(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, HeadforceError):
        return None
    return data if "preset" in data else None


def _from_file(path: Path, data: dict[Any, Any], arguments: dict[str, Any]) -> Policy:
    for key in data:
        if key not in KEYS:
            raise HeadforceError(
                "HF-POLICY-KEY", site=f"{path}, {key}", found=f"key {key!r} beside a preset", needed=", ".join(KEYS)
            )
    given = data.get("arguments") or {}
    if not isinstance(given, Mapping) or not isinstance(data["preset"], str):
        raise HeadforceError(
            "HF-POLICY-VALUE", site=str(path), found="a preset in another form", needed="preset: NAME, arguments: {...}"
        )
    for key in given:
        if not isinstance(key, str):
            raise HeadforceError("HF-PRESET", site=f"{path}, arguments", found=f"argument {key!r}", needed="names")
    given = {**given, **arguments}
    if isinstance(given.get("labels"), str) and not arguments:
        given["labels"] = path.parent / given["labels"]
    try:
        return make_preset(data["preset"], **given)
    except HeadforceError as error:
        raise error.at(str(path)) from None
