"""What the tests of the graph pass share: a small model with peaked attention, and a clean compiler for every test.

Tracing takes most of their time. Modules whose tests prepare the same small model, and count no graphs, are marked
`shares_graphs`: the compiler is cleaned in front of the first test only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from examples.causal_wan import TINY, CausalWan, Rollout, WanConfig, init_random

_compiled_by: pytest.Module | None = None
"""The module whose graphs Dynamo still has."""


@pytest.fixture(autouse=True)
def clean_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    global _compiled_by
    shares = request.node.get_closest_marker("shares_graphs") is not None
    if not shares or _compiled_by is not request.module:
        torch._dynamo.reset()
    _compiled_by = request.module if shares else None
    torch._dynamo.utils.counters.clear()
    yield
    if not shares:
        torch._dynamo.reset()


def wan(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> CausalWan:
    """A tiny causal Wan whose attention is peaked, so that a missing frame shows. It has one layer, as tracing takes
    long; tests that tell layers apart ask for two."""
    model = CausalWan(replace(TINY, **{"num_layers": 1, **changes})).eval()
    init_random(model, seed, peaked=True)
    return model.to(dtype)


def text(config: WanConfig, batch: int = 1, dtype: torch.dtype = torch.float32, seed: int = 7) -> torch.Tensor:
    """A text embedding for `config`."""
    shape = (batch, config.text_len, config.text_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def videos(model: object, config: WanConfig, lengths: tuple[list[int], ...], batch: int = 1, dtype=torch.float32):
    """Several videos in a row with the same caches; two noisy passes and a clean one for each chunk."""
    rollout = Rollout(model, config, timesteps=(1000.0, 625.0))
    return [rollout.generate(text(config, batch, dtype), chunks, seed=i) for i, chunks in enumerate(lengths)]
