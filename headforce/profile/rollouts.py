"""Videos that are made to be measured: what a target on the command line says, prompt by prompt and seed by seed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ..calls import Example
from ..errors import HeadforceError
from ..kvpass.capture import modules_of

SAMPLED = 16
"""Numbers of every weight that a fingerprint looks at."""

Name = dict[str, int | str]


@dataclass(frozen=True)
class Rollouts:
    """A model and the videos it is to make.

    Attributes:
        model: the model, or a pipeline that holds one. make: makes the video of a name. names: of all videos.
    """

    model: Any
    make: Callable[[Mapping[str, int | str]], object]
    names: tuple[Name, ...]

    @staticmethod
    def of(example: Example, prompts: int = 1, seeds: int = 1) -> Rollouts:
        """The videos of an example: of every prompt with every seed.

        Its function is called with the model, and with `prompt` and `seed`, numbers from 0 on, if it takes them. Raises
        HF-EXAMPLE where several are asked for and it does not, or where the example is a list of calls.
        """
        # Calls have caches among their arguments, which whoever has the example may want to use again.
        own = example if callable(example.calls) else example.copied()
        model, calls = own.model, own.calls
        takes = set(inspect.signature(calls).parameters) if callable(calls) else set()
        for name, count in (("prompt", prompts), ("seed", seeds)):
            if count > 1 and name not in takes:
                raise HeadforceError(
                    "HF-EXAMPLE",
                    site=f"--{name}s {count}",
                    found=f"a rollout that takes no {name}" if callable(calls) else "a list of calls",
                    needed=f"a function of the model and a `{name}`",
                )
        every = product(range(prompts), range(seeds))
        names: list[Name] = [{k: v for k, v in (("prompt", p), ("seed", s)) if k in takes} for p, s in every]

        def make(name: Mapping[str, int | str]) -> object:
            with torch.no_grad():
                if callable(calls):
                    return calls(model, **name)
                return [model(*args, **kwargs) for args, kwargs in calls]

        return Rollouts(model, make, tuple(names))


def weights_of(model: Any) -> str:
    """A fingerprint of a model: its modules, and names, shapes and a few numbers of its weights (16 hex digits).

    It tells a model from another of the same name, such as one of another size or after more training.
    """
    digest = hashlib.sha256()
    for module in modules_of(model):
        digest.update(type(module).__name__.encode())
        for name, weight in module.named_parameters(recurse=False):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            if weight.numel() and weight.device.type != "meta":
                flat = weight.detach().reshape(-1)
                some = flat[:: max(1, flat.numel() // SAMPLED)]
                digest.update(some.to(device="cpu", dtype=torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]
