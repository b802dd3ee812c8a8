"""The options of `torch.compile(model, backend="headforce", options={...})`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import HeadforceError, nearest
from ..lowering.targets import find_target
from ..lowering.verify import Verification
from ..policy import Policy
from ..presets import read_policy
from .torch_private import inductor_settings

_CHOICES = {"on_refuse": ("error", "warn")}


@dataclass(frozen=True)
class Options:
    """What a user may set.

    Attributes:
        policy: a `Policy`, the path of a policy file or the name of a preset (with `labels`, the path of its label
            file), for models that `prepare` did not see.
        target: how ragged attention is computed; None is `triton` on a GPU and `sdpa` elsewhere.
        inner: the compiler that gets the rewritten graph: "inductor", "eager", or any registered backend.
        inner_mode: its mode, such as "max-autotune-no-cudagraphs"; `torch.compile(mode=...)` alone means the same.
        inner_options: its options.
        cudagraphs: capture passes and replay them; for prepared models in owned mode, on a CUDA device.
        on_refuse: "error" raises when an attention site was asked for and cannot be rewritten; "warn" leaves it alone.
        verify, every: what is checked while the model runs, as in `prepare`. For models that `prepare` did not see.
    """

    policy: Policy | None = None
    target: str | None = None
    inner: str = "inductor"
    inner_mode: str | None = None
    inner_options: Mapping[str, Any] | None = None
    cudagraphs: bool = False
    on_refuse: str = "error"
    verify: str | None = None
    every: int = 1

    @property
    def checks(self) -> Verification:
        """What is checked."""
        return Verification.of(self.verify, self.every)


def read_options(mode: str | None, given: Mapping[str, Any] | None) -> Options:
    """The options as given to `torch.compile`; HF-OPTION for a name or a value that does not exist."""
    values = dict(given or {})
    known = [*(field.name for field in dataclasses.fields(Options)), "labels"]
    for name in values:
        if name not in known:
            raise HeadforceError(
                "HF-OPTION", site=name, found=f"option {name!r}{nearest(name, known)}", needed=", ".join(known)
            )
    for name, choices in _CHOICES.items():
        if values.get(name, choices[0]) not in choices:
            raise HeadforceError("HF-OPTION", site=name, found=repr(values[name]), needed=" or ".join(choices))
    if not isinstance(values.get("cudagraphs", False), bool):
        raise HeadforceError("HF-OPTION", site="cudagraphs", found=repr(values["cudagraphs"]), needed="True or False")
    if values.get("target") is not None:
        if not isinstance(values["target"], str):
            raise HeadforceError(
                "HF-OPTION", site="target", found=repr(values["target"]), needed="the name of a target"
            )
        find_target(values["target"])
    labels = values.pop("labels", None)
    given = values.get("policy")
    if labels is not None and (given is None or isinstance(given, Policy)):
        raise HeadforceError(
            "HF-OPTION", site="labels", found="labels without a preset", needed="policy: a preset's name"
        )
    if isinstance(given, str | os.PathLike):
        values["policy"] = read_policy(given, labels)
    elif not isinstance(given, Policy | None):
        raise HeadforceError(
            "HF-OPTION", site="policy", found=type(given).__name__, needed="a Policy, a file or a preset"
        )
    Verification.of(values.get("verify"), values.get("every", 1))
    settings = Options(**{"inner_mode": mode, **values})
    _check_inner(settings)
    return settings


def _check_inner(settings: Options) -> None:
    """HF-OPTION for a mode or options that the inner compiler does not have, as far as that is known here."""
    mode, options = settings.inner_mode, settings.inner_options
    if not isinstance(mode, str | None):
        raise HeadforceError("HF-OPTION", site="inner_mode", found=repr(mode), needed="a name, or None")
    if not isinstance(options, Mapping | None):
        raise HeadforceError("HF-OPTION", site="inner_options", found=repr(options), needed="a dict, or None")
    if settings.inner == "eager" and (mode or options):
        site = "inner_mode" if mode else "inner_options"
        raise HeadforceError(
            "HF-OPTION",
            site=site,
            found=repr(mode or options),
            needed="none with inner 'eager', which compiles nothing",
        )
    if settings.inner != "inductor":
        return  # torch's other backends know what they take when they are called
    modes, known = inductor_settings()
    if mode and mode not in modes:
        raise HeadforceError(
            "HF-OPTION", site="inner_mode", found=f"{mode!r}{nearest(mode, modes)}", needed=", ".join(modes)
        )
    for name in options or {}:
        if name not in known:
            raise HeadforceError(
                "HF-OPTION",
                site="inner_options",
                found=f"{name!r}{nearest(str(name), known)}",
                needed="names of torch._inductor.config",
            )
