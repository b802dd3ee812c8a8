"""Pyramid Forcing's cache of heads (its Python path) in Self-Forcing's model, which is what it was made for.

Its own repository was not to be had as a checkout; a fork of Rolling Forcing has its package `headkv`, under the name
that it had at first. Cache, strategies, positions and RoPE are that package's; model and loop are Self-Forcing's.

Two things are replaced because the preset does not follow them. The frames of the first chunk are a sink at position 0
at once; here that chunk is plain attention. And a clean pass stores its frames before it reads, which pushes out the
oldest frame that the noisy passes read; here it reads first.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headforce.presets import Labels

from .families import self_forcing
from .run import HEAD_DIM, HEADS, Run, Scale, written

PUBLISHED = {"cyclic_bucket_cap": 4, "merge_capacity": 4}
"""Sizes in `configs/pyramid-forcing.yaml` of the original, where the fork's file has others."""
PUBLISHED_BY_LABEL = {"headkv_label_phase_bucket_map": {"-1": 4}, "headkv_label_merge_capacity_map": {"2": 4}}


def pyramid(path: Path, base: Path, labels: Labels, scale: Scale) -> Run:
    """Self-Forcing's pipeline with caches of the package in the checkout `path`, one for each layer."""
    run = self_forcing(base, window=21, sink=0, scale=scale)
    sys.path.append(str(path))
    for package in ("pipeline", "wan.modules"):
        sys.modules[package].__path__.append(str(path / package.replace(".", "/")))
    import pipeline.rolling_forcing_inference as fork  # type: ignore[import-not-found]
    import wan.modules.causal_model as causal  # type: ignore[import-not-found]

    sizes = SimpleNamespace(num_layers=scale.layers, num_heads=HEADS, dim=HEADS * HEAD_DIM)
    given = _arguments(path, labels, scale.tokens)
    settings = SimpleNamespace(
        use_headkv=True,
        headkv_config=fork.HeadKVPipelineConfig.from_args(given, frame_seq_length=scale.tokens),
        generator=SimpleNamespace(model=sizes),
        local_attn_size=-1,
        frame_seq_length=scale.tokens,
    )

    def initialize(batch_size: int, dtype: torch.dtype, device: torch.device) -> None:
        fork.CausalInferencePipeline._initialize_kv_cache(settings, batch_size, dtype, device)
        run.pipeline.kv_cache1 = settings.kv_cache_clean

    run.pipeline._initialize_kv_cache = initialize
    attention = _HeadAttention(causal.causal_rope_apply, scale.tokens)
    causal.CausalWanSelfAttention.forward = lambda *args: attention(*args)
    run.model.register_forward_pre_hook(attention.begin, with_kwargs=True)

    def video(seed: int, chunks: int) -> Tensor:
        run.pipeline.kv_cache1 = None  # Self-Forcing would empty the dicts that it knows
        return run.video(seed, chunks)

    return replace(run, video=video)


class _HeadAttention:
    """In place of the forward of self-attention: as the model of Pyramid Forcing calls its cache."""

    def __init__(self, rope: Any, tokens: int) -> None:
        self.rope, self.tokens, self.clean = rope, tokens, False

    def begin(self, _: Any, args: Any, given: dict[str, Tensor]) -> None:
        """Before every pass."""
        self.clean = not given["t"].any()

    def __call__(
        self,
        layer: Any,
        x: Tensor,
        seq_lens: Tensor,
        grid_sizes: Tensor,
        freqs: Tensor,
        block_mask: None,
        cache: Any,
        start: int,
        cache_start: int,
    ) -> Tensor:
        q, k, v = (
            t.unflatten(2, (HEADS, -1)) for t in (layer.norm_q(layer.q(x)), layer.norm_k(layer.k(x)), layer.v(x))
        )
        turned, keys = (self.rope(t, grid_sizes, freqs, start_frame=start // self.tokens).type_as(v) for t in (q, k))
        where = {"current_start": start, "grid_sizes": grid_sizes, "freqs": freqs}
        cache.update(k, v, **where, cache_update_mode="noisy")
        if start:
            out = _of_heads(turned, self.tokens, cache, start, grid_sizes, freqs)
        else:
            out = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (turned, keys, v))).transpose(1, 2)
        if self.clean:
            cache.update(k, v, **where, cache_update_mode="clean")
        result: Tensor = layer.o(out.flatten(2))
        return result


def _of_heads(q: Tensor, tokens: int, cache: Any, start: int, grid_sizes: Tensor, freqs: Tensor) -> Tensor:
    """Attention of every query frame and head with what the cache gives it, [1, rows, heads, channels]."""
    frames = []
    for at in range(0, q.shape[1], tokens):
        k, v, ends, *_ = cache.get_decoupled_flat_kv_and_frames(start + at, grid_sizes, freqs)
        rows = q[0, at : at + tokens]
        heads = [
            scaled_dot_product_attention(*(t[None, None] for t in (rows[:, h], k[a:b], v[a:b])))[0, 0]
            for h, (a, b) in enumerate(itertools.pairwise(ends.tolist()))
        ]
        frames.append(torch.stack(heads, dim=1))
    return torch.cat(frames)[None]


def _arguments(path: Path, labels: Labels, tokens: int) -> SimpleNamespace:
    """The fork's configuration with the original's sizes, for so many tokens in a frame and these labels."""
    table = written("labels.csv", labels.to_pyramid())
    given: dict[str, Any] = yaml.safe_load((path / "configs/rolling_forcing_headkv.yaml").read_text()) | PUBLISHED
    for name, sizes in PUBLISHED_BY_LABEL.items():
        given[name] = given[name] | sizes
    for name, value in given.items():
        if isinstance(value, int) and value and value % 1560 == 0:
            given[name] = value // 1560 * tokens
    given["headkv_code_map"] = {label: n // 1560 * tokens for label, n in given["headkv_code_map"].items()}
    for name in ("headkv_config_path", "headkv_policy_csv_path"):
        given[name] = table
    return SimpleNamespace(**given)
