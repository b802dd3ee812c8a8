"""The inner compiler: what compiles a graph once headforce is done with it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule

from ..errors import HeadforceError
from ..lowering import ops
from .options import Options
from .torch_private import cache_key_tag, forward_of


def compile_inner(module: GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """Compiles `module` with the inner compiler that the options name."""
    if options.inner == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = dict(list_mode_options(options.inner_mode)) if options.inner_mode else {}
        patches.update(options.inner_options or {})
        with cache_key_tag(_our_operators()):
            compiled: Callable[..., Any] = compile_fx(module, list(example_inputs), config_patches=patches)
        return compiled
    if options.inner == "eager":
        return forward_of(module)
    if options.inner not in torch._dynamo.list_backends(exclude_tags=()):
        raise HeadforceError(
            "HF-OPTION", site="inner", found=repr(options.inner), needed="inductor, eager or another torch backend"
        )
    backend = torch._dynamo.lookup_backend(options.inner)
    keywords = {"mode": options.inner_mode} if options.inner_mode else {}
    if options.inner_options:
        keywords["options"] = dict(options.inner_options)
    result: Callable[..., Any] = backend(module, list(example_inputs), **keywords)
    return result


@functools.cache
def _our_operators() -> str:
    """What the results of headforce's operators look like, as a tag for torch's caches on disk: they keep what was
    traced, and know operators by their names alone."""
    return "headforce " + hashlib.sha256(inspect.getsource(ops).encode()).hexdigest()[:16]
