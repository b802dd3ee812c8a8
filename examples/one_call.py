"""One call of the example model, for `headforce explain examples/one_call.py:first_chunk`."""

from __future__ import annotations

from typing import Any

import torch

from examples.causal_wan import TINY, CausalWan, allocate_crossattn_cache, allocate_kv_cache, init_random


def first_chunk() -> tuple[CausalWan, tuple[Any, ...], dict[str, Any]]:
    """The model, and the arguments of its first pass over three frames."""
    config = TINY
    latents = torch.randn(1, config.channels, 3, config.latent_height, config.latent_width)
    text = torch.randn(1, config.text_len, config.text_dim)
    caches = {"kv_cache": allocate_kv_cache(config), "crossattn_cache": allocate_crossattn_cache(config)}
    return init_random(CausalWan(config)).eval(), (latents, torch.full((1, 3), 1000.0), text), caches
