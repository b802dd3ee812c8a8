"""Self-Forcing's attention as its code has it (commit 33593df3), in the place of the example's.

RoPE multiplies in complex128, query and key by themselves; the two indices of a cache are tensors on the device, and
the host waits for one of them each time it asks. The arithmetic is the example's otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wan import example

from headforce.demo.example import twin

INDICES = ("global_end_index", "local_end_index")


def as_published(model: nn.Module) -> nn.Module:
    """A twin of the model that attends as the published code does. Its caches are those of `index_on_device`."""
    other = twin(model)
    for block in other.blocks:
        block.self_attn = PublishedAttention(block.self_attn)
    return other


def index_on_device(caches: list[dict[str, Any]]) -> None:
    """Makes the indices of empty caches tensors where the caches are."""
    for cache in caches:
        for name in INDICES:
            cache[name] = torch.zeros(1, dtype=torch.int64, device=cache["k"].device)


def restart(caches: list[dict[str, Any]]) -> None:
    """Empties caches for another video."""
    for cache in caches:
        for name in INDICES:
            cache[name].zero_()


class PublishedAttention(nn.Module):
    """Takes the place of the example's self-attention in one layer, with its weights."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention: Any = attention
        self.freqs: Tensor | None = None

    def forward(
        self, x: Tensor, rope: Tensor, grid: tuple[int, int, int], kv_cache: dict[str, Any], current_start: int
    ) -> Tensor:
        """x [B, tokens, dim] -> [B, tokens, dim]; writes the chunk into `kv_cache`."""
        if self.freqs is None:
            self.freqs = torch.view_as_complex(rope.double())
        own, tokens = self.attention, grid[1] * grid[2]
        q = complex_rope(own.query(x), self.freqs, grid, current_start // tokens)
        k, v = own.key_value(x)
        k = complex_rope(k, self.freqs, grid, current_start // tokens)

        new, end, sink = k.shape[1], current_start + k.shape[1], own.sink_size * tokens
        size = kv_cache["k"].shape[1]
        if end > kv_cache["global_end_index"].item() and new + kv_cache["local_end_index"].item() > size:
            evicted = new + kv_cache["local_end_index"].item() - size
            rolled = kv_cache["local_end_index"].item() - evicted - sink
            for name in ("k", "v"):
                moved = kv_cache[name][:, sink + evicted : sink + evicted + rolled].clone()
                kv_cache[name][:, sink : sink + rolled] = moved
            local = kv_cache["local_end_index"].item() + end - kv_cache["global_end_index"].item() - evicted
        else:
            local = kv_cache["local_end_index"].item() + end - kv_cache["global_end_index"].item()
        kv_cache["k"][:, local - new : local] = k
        kv_cache["v"][:, local - new : local] = v
        past = slice(max(0, local - own.window * tokens), local)
        y = attend(q, kv_cache["k"][:, past], kv_cache["v"][:, past])
        kv_cache["global_end_index"].fill_(end)
        kv_cache["local_end_index"].fill_(local)
        return own.o(y.flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SDPA of [B, rows, H, D], with the backend that is switched on."""
    heads_first = (t.transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def complex_rope(x: Tensor, freqs: Tensor, grid: tuple[int, int, int], start: int) -> Tensor:
    """RoPE of x [B, tokens, H, D] whose first frame is `start`: one video after the other, in complex128."""
    frames, rows, columns = grid
    time, row, column = freqs.split(example.rope.axis_pairs(x.shape[-1]), dim=1)
    output = []
    for video in x:
        pairs = torch.view_as_complex(video.to(torch.float64).unflatten(-1, (-1, 2)))
        factors = torch.cat(
            [
                time[start : start + frames].view(frames, 1, 1, -1).expand(frames, rows, columns, -1),
                row[:rows].view(1, rows, 1, -1).expand(frames, rows, columns, -1),
                column[:columns].view(1, 1, columns, -1).expand(frames, rows, columns, -1),
            ],
            dim=-1,
        ).reshape(frames * rows * columns, 1, -1)
        output.append(torch.view_as_real(pairs * factors).flatten(2))
    return torch.stack(output).type_as(x)
