"""AnyFlow-FAR of diffusers, which needs no checkout: `python -m tests.upstream.anyflow_far` prints its row as JSON.

The noisy passes of a chunk read `cat([compressed past, full past, new])`; one more pass then sends the whole prefix
again, under a block mask, and writes both caches anew, with older chunks at a quarter of their tokens.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import headforce
from headforce.kvpass.backend import UNPREPARED
from headforce.policy import Policy

CHUNKS = (1, 2, 2, 2, 1)
SIZE = (8, 8)
STEPS = (1000.0, 500.0)
CHANNELS, TEXT = 4, 16
SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 64,
}


def make(layers: int = 2) -> nn.Module:
    """The model, with the same random weights every time."""
    from diffusers import AnyFlowFARTransformer3DModel

    torch.manual_seed(0)
    return AnyFlowFARTransformer3DModel(**SMALL, num_layers=layers, chunk_partition=CHUNKS).eval().requires_grad_(False)


class Video:
    """A loop like that of its pipeline: caches, noisy passes of each chunk, and the pass that writes the caches.

    Attributes:
        latents: [1, frames, channels, rows, columns], as far as they are made. caches: of all layers.
    """

    def __init__(self, model: nn.Module, chunks: tuple[int, ...] = CHUNKS, seed: int = 1) -> None:
        config = model.config
        self.model, self.chunks = model, chunks
        generator = torch.Generator().manual_seed(seed)
        self.text = torch.randn(1, 8, TEXT, generator=generator)
        self.latents = torch.randn(1, sum(chunks), CHANNELS, *SIZE, generator=generator)
        rows = {
            "full_cache": (config.full_chunk_limit * max(chunks), config.patch_size),
            "compressed_cache": (
                max(1, len(chunks) - config.full_chunk_limit + 1) * max(chunks),
                config.compressed_patch_size,
            ),
        }
        self.caches = {
            layer: {name: self._cache(frames * _tokens(patch)) for name, (frames, patch) in rows.items()}
            for layer in range(config.num_layers)
        }

    def run(self, call: Callable[..., Any] | None = None) -> Video:
        """Makes the video; `call` is the model, compiled."""
        call = self.model if call is None else call
        for chunk in range(len(self.chunks)):
            for step in range(len(STEPS)):
                x, pass_of = self.noisy(chunk, step)
                after = STEPS[step + 1] if step + 1 < len(STEPS) else 0.0
                x += (after - STEPS[step]) / 1000 * call(**pass_of)[0]
            if chunk < len(self.chunks) - 1:
                call(**self.writing(chunk))
        return self

    def noisy(self, chunk: int, step: int) -> tuple[Tensor, dict[str, Any]]:
        """The latents of a chunk, which are to be changed, and the arguments of a noisy pass over them."""
        first = sum(self.chunks[:chunk])
        x = self.latents[:, first : first + self.chunks[chunk]]
        after = STEPS[step + 1] if step + 1 < len(STEPS) else 0.0
        return x, self._arguments(x, chunk, STEPS[step], after, is_cache_step=False)

    def writing(self, chunk: int) -> dict[str, Any]:
        """The arguments of the pass that writes the caches after a chunk."""
        partition = list(self.chunks[: chunk + 1])
        mask = self.model.build_attention_mask(chunk_partition=partition, height=SIZE[0], width=SIZE[1], mode="cache")
        x = self.latents[:, : sum(partition)]
        return {**self._arguments(x, chunk, 0.0, 0.0, is_cache_step=True), "attention_mask": mask}

    def _arguments(self, x: Tensor, chunk: int, t: float, r: float, *, is_cache_step: bool) -> dict[str, Any]:
        return {
            "hidden_states": x,
            "timestep": torch.full(x.shape[:2], t),
            "r_timestep": torch.full(x.shape[:2], r),
            "encoder_hidden_states": self.text,
            "chunk_partition": list(self.chunks[: chunk + 1]),
            "kv_cache": self.caches,
            "kv_cache_flag": {"num_cached_chunks": chunk, "is_cache_step": is_cache_step},
            "return_dict": False,
        }

    def _cache(self, rows: int) -> Tensor:
        config = self.model.config
        return torch.zeros(2, 1, config.num_attention_heads, rows, config.attention_head_dim)


def _tokens(patch: tuple[int, int, int]) -> int:
    return (SIZE[0] // patch[1]) * (SIZE[1] // patch[2])


@torch.no_grad()
def main() -> None:
    import diffusers

    logging.getLogger("headforce").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 32  # every chunk has graphs of its own
    eager = Video(make()).run()
    model = make()
    model.compile_repeated_blocks(
        backend="headforce", options={"inner": "eager", "policy": Policy({}), "on_refuse": "warn"}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ours = Video(model).run()
    verdicts = Counter(f"{line.verdict} {line.reason.split(']')[0].strip('[')}" for line in UNPREPARED.sites)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    row = {
        "family": "anyflow-far",
        "diffusers": diffusers.__version__,
        "headforce": headforce.__version__,
        "held": sum(t.nbytes for cache in eager.caches.values() for t in cache.values()),
        "graphs": UNPREPARED.graphs,
        "breaks": breaks,
        "sites of the graphs": dict(verdicts),
        "difference": ((ours.latents - eager.latents).abs().max() / eager.latents.abs().max()).item(),
    }
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
