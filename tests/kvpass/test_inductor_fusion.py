"""Inductor fuses norms, modulation and gates around headforce's operators as it does around plain attention.

Told by the code that it writes for one block of the example, next to the code for the unmodified block. What it writes
in C++ is not compiled: that takes longer than everything else, and nothing here looks at numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.utils import run_and_get_code
from torch.nn.attention import SDPBackend, sdpa_kernel

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy

from ..lowering.test_ops import copies
from .conftest import text, wan

ONLY_PLAIN = {"copy", "slice", "with", "sizes"}
"""What only the unmodified block does: it writes to its cache, takes slices of it, and splits its RoPE table."""


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels do nothing."""
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *_: None)
    with config.patch({"force_disable_caches": True, "cpp.vec_isa_ok": True}):
        yield


@torch.no_grad()
def code_of(compile_block: Callable[[Any], Any]) -> tuple[str, Any]:
    """The code for the block of a model of one layer, in a pass that finds the text in its cache; and what
    `compile_block` returned."""
    model = wan(local_attn_size=21)
    rollout, context = Rollout(model), text(model.config)
    rollout._prepare_caches(context)
    size = (model.config.channels, 3, model.config.latent_height, model.config.latent_width)
    given = (torch.randn(1, *size), torch.full((1, 3), 500.0), context)

    def call(start: int) -> None:
        model(*given, kv_cache=rollout.kv_cache, crossattn_cache=rollout.crossattn_cache, current_start=start)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        call(0)
        for cache in rollout.kv_cache:
            cache["global_end_index"] = cache["local_end_index"] = 0
        compiled = compile_block(model)
        _, (code,) = run_and_get_code(call, 0)
    return code, compiled


def kernels(code: str) -> list[set[str]]:
    """The operations fused into each kernel, in the order of their calls."""
    calls = re.findall(r"\bcpp_fused_(\w+)_\d+\(", code[code.index("def call(") :])
    return [set(re.findall(r"native_layer_norm|[a-z]+", name)) - ONLY_PLAIN for name in calls]


@pytest.mark.slow
def test_the_kernels_around_attention_are_those_of_the_unmodified_block() -> None:
    plain, _ = code_of(lambda model: model.blocks[0].compile(backend="inductor"))
    torch._dynamo.reset()

    alive = []  # pools go with their model

    def prepared(model: Any) -> headforce.Session:
        alive.append(model)
        session = headforce.prepare(model, policy=Policy({}))
        session.compile(blocks="blocks", inner="inductor", target="sdpa")
        return session

    code, session = code_of(prepared)
    assert "aten._scaled_dot_product_flash_attention_for_cpu" in plain
    assert len(re.findall(r"= torch\.ops\.headforce\.ragged_attention\.default\(", code)) == 1
    assert len(kernels(code)) >= 5
    assert kernels(code) == kernels(plain)
    (pool,) = (caches.pool for caches in session.cache_sets)
    (written,) = re.findall(r"\.write_pages\.default\(.*, (arg\w+), (arg\w+), arg\w+\)", code)
    (read,) = re.findall(r"\.ragged_attention\.default\(.*\), (arg\w+), (arg\w+), arg", code)
    assert written == read, "the pools come in, are written, and are read where they are"
    assert not copies(code, pool.k)
