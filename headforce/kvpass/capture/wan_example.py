"""A small model of a `CausalWanModel` class, and calls like those of its repository's pipeline."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .adapter import Adapter, Call

LAYERS, HEADS, HEAD_DIM = 2, 2, 12
TEXT, TEXT_LEN, CHANNELS = 16, 8, 4
ROWS, COLUMNS = 4, 6
TOKENS = ROWS * COLUMNS
DTYPE = torch.bfloat16  # the repositories' attention casts to it
CHUNK, CHUNKS = 3, 4


def wan_example(
    family: Adapter, kind: type[nn.Module], *, window: int | None, indexed: bool
) -> tuple[nn.Module, list[Call]] | None:
    """A model of `kind` with random weights, and a noisy and a clean pass over each of four chunks of three frames.

    Args:
        window: frames that the cache holds, or None for a cache of the whole video. indexed: whether a layer's dict
            holds its indices; else the rows to write are an argument of the call.

    None if the class has no `_forward_inference`, or if its models are not of the family.
    """
    if not hasattr(kind, "_forward_inference"):
        return None
    model = _model(kind, window)
    if not family.matches(model):
        return None
    caches = {
        "kv_cache": [_cache((window or CHUNK * CHUNKS) * TOKENS, indexed) for _ in range(LAYERS)],
        "crossattn_cache": [{**_tensors(TEXT_LEN), "is_init": False} for _ in range(LAYERS)],
    }
    context = torch.zeros(1, TEXT_LEN, TEXT, dtype=DTYPE)
    calls: list[Call] = []
    for chunk in range(CHUNKS):
        start, stop = chunk * CHUNK * TOKENS, (chunk + 1) * CHUNK * TOKENS
        video = torch.zeros(1, CHANNELS, CHUNK, 2 * ROWS, 2 * COLUMNS, dtype=DTYPE)
        place = {"current_start": start} if indexed else {"current_start": start, "current_end": stop}
        for level in (1000, 0):
            given: dict[str, Any] = {"x": video, "t": torch.full((1, CHUNK), level), "context": context}
            calls.append(((), {**given, "seq_len": CHUNK * TOKENS, **caches, **place}))
    return model, calls


def _model(kind: type[nn.Module], window: int | None) -> nn.Module:
    sizes: dict[str, Any] = {
        "dim": HEADS * HEAD_DIM,
        "ffn_dim": 2 * HEADS * HEAD_DIM,
        "freq_dim": HEAD_DIM,
        "text_dim": TEXT,
        "text_len": TEXT_LEN,
        "in_dim": CHANNELS,
        "out_dim": CHANNELS,
        "num_heads": HEADS,
        "num_layers": LAYERS,
    }
    if "local_attn_size" in inspect.signature(kind).parameters:
        sizes["local_attn_size"] = window or -1
    return kind(**sizes).to(DTYPE).eval().requires_grad_(False)


def _cache(rows: int, indexed: bool) -> dict[str, Any]:
    indices = ("global_end_index", "local_end_index") if indexed else ()
    return {**_tensors(rows), **{name: torch.tensor([0], dtype=torch.long) for name in indices}}


def _tensors(rows: int) -> dict[str, Any]:
    return {name: torch.zeros(1, rows, HEADS, HEAD_DIM, dtype=DTYPE) for name in ("k", "v")}
