"""Loading published weights, without running code from the file and without half-loaded models."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

# Self-Forcing saves the averaged weights under the first key and the plain ones under the second.
WRAPPERS = ("generator_ema", "generator")
# Names that data-parallel training and torch.compile leave inside parameter names.
TRAINING_NAMES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model. The model is unchanged."""


def load_checkpoint(model: nn.Module, path: str | Path, weights: str | None = None) -> None:
    """Copy the weights in ``path`` (``.safetensors``, else a ``torch.save`` file) into ``model``, all or nothing.

    The file holds a state dict, or wraps one as ``{"generator": ...}`` or ``{"generator_ema": ...}``; ``weights`` names
    the one to take, by default the averaged ``generator_ema`` where there are both. A ``model.`` before every name is
    dropped. Values are converted to the dtype of the model.

    Raises ``CheckpointError`` when the file cannot be read, would run code, or has a name missing, too many, or of
    another shape.
    """
    path = Path(path)
    state = _plain_names(_unwrap(_read(path), weights, path))
    target = model.state_dict()
    if any(tensor.is_meta for tensor in target.values()):
        raise CheckpointError("the model is on the meta device; give it memory first: model.to_empty(device=...)")
    _check_fit(state, target, path)
    model.load_state_dict(state)


def _read(path: Path) -> object:
    """Everything in the file, on the CPU."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        # Files in the older format, which is no zip archive, cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises a dozen types for files that are damaged or hostile
        raise CheckpointError(
            f"{path} was refused. Only tensors and plain containers are read; a file that holds other objects could "
            f"run code when loaded. If you trust it, save its state dict again with torch.save. Cause: {error}"
        ) from error


def _load_safetensors(path: Path) -> object:
    from safetensors import SafetensorError  # lazy: models with random weights do without
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _unwrap(content: object, weights: str | None, path: Path) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; a state dict is needed")
    found = [name for name in WRAPPERS if name in content]
    if weights is not None and weights not in content:
        raise CheckpointError(f"{path} has no {weights!r}; it has {_some(content)}")
    wrapper = weights or next(iter(found), None)
    state = content if wrapper is None else content[wrapper]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__} under {wrapper!r}; a state dict is needed")
    wrong = [str(name) for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(f"{path} is not a state dict of tensors; other values are under {_some(wrong)}")
    return state


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names that the model itself uses."""
    plain = {}
    for name, tensor in state.items():
        for inserted in TRAINING_NAMES:
            name = name.replace(inserted, "")
        plain[name] = tensor
    if plain and all(name.startswith("model.") for name in plain):
        plain = {name.removeprefix("model."): tensor for name, tensor in plain.items()}
    return plain


def _check_fit(state: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path) -> None:
    problems = []
    if missing := target.keys() - state.keys():
        problems.append(f"missing: {_some(missing)}")
    if unexpected := state.keys() - target.keys():
        problems.append(f"unexpected: {_some(unexpected)}")
    shapes = [
        f"{name} is {list(state[name].shape)}, not {list(target[name].shape)}"
        for name in target.keys() & state.keys()
        if state[name].shape != target[name].shape
    ]
    if shapes:
        problems.append(f"of another shape: {_some(shapes)}")
    if problems:
        raise CheckpointError(f"{path} does not fit the model, so nothing was loaded; " + "; ".join(problems))


def _some(names: Iterable[object], limit: int = 6) -> str:
    """The first few names in order, and how many more there are."""
    listed = sorted(map(str, names))
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")
