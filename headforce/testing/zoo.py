"""Small attention layers in the many ways video models are written.

A layer is put together from three parts: how it rotates (`ROPES`), how it keeps its past (`PROTOCOLS`) and how it
attends (`CORES`). Each part is a function of a few lines in the style of one code base; a test may give its own.

Shapes: x is [B, S, HEADS * HEAD_DIM]; q, k and v are [B, S, H, HEAD_DIM]; a cache is [B, C, H, HEAD_DIM].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, HEAD_DIM = 4, 12
GRID = (2, 3)
TOKENS = GRID[0] * GRID[1]
PAIRS = (2, 2, 2)  # pairs that turn with frame, row and column
CAPACITY_FRAMES, SINK_FRAMES, CHUNK_FRAMES = 6, 1, 2

Cache = dict[str, Any]


def rates() -> tuple[Tensor, ...]:
    """Radians that the frame, row and column pairs turn in one position, float64 [pairs] each."""
    return tuple(50.0 ** -(torch.arange(n, dtype=torch.float64) / n) for n in PAIRS)


def angles(positions: int = 64) -> tuple[Tensor, ...]:
    """Angles of the frame, row and column pairs, float64 [positions, pairs] each."""
    where = torch.arange(positions, dtype=torch.float64)
    return tuple(torch.outer(where, of_axis) for of_axis in rates())


# RoPE: rope(x, table, start_frame) with table [positions, pairs] complex, or (cos, sin) of that shape; or [pairs], the
# rates of all of them.


def _spread(parts: tuple[Tensor, ...], start: int, frames: int, last: int = -1) -> Tensor:
    """The rows of a table for a chunk, [S, 1, columns]."""
    f, (h, w) = frames, GRID
    time, row, column = parts
    spread = [
        time[start : start + f].view(f, 1, 1, last).expand(f, h, w, last),
        row[:h].view(1, h, 1, last).expand(f, h, w, last),
        column[:w].view(1, 1, w, last).expand(f, h, w, last),
    ]
    return torch.cat(spread, dim=-1).reshape(f * h * w, 1, -1)


def rope_complex(x: Tensor, table: Tensor, start: int) -> Tensor:
    """Complex multiplication, sample by sample (Wan, Self-Forcing)."""
    frames = x.shape[1] // TOKENS
    out = []
    for i in range(x.shape[0]):
        pairs = torch.view_as_complex(x[i].to(torch.float64).reshape(x.shape[1], x.shape[2], -1, 2))
        rows = _spread(table.split(list(PAIRS), dim=1), start, frames)
        out.append(torch.view_as_real(pairs * rows).flatten(2))
    return torch.stack(out).type_as(x)


def rope_complex_batched(x: Tensor, table: Tensor, start: int) -> Tensor:
    """Complex multiplication of the whole batch, with the operands in the other order."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    rows = _spread(table.split(list(PAIRS), dim=1), start, x.shape[1] // TOKENS)
    return torch.view_as_real(rows[None] * pairs).flatten(-2).to(x.dtype)


def _real(table: tuple[Tensor, Tensor], start: int, frames: int) -> tuple[Tensor, Tensor]:
    return tuple(_spread(part.split(list(PAIRS), dim=1), start, frames) for part in table)


def rope_stacked(x: Tensor, table: tuple[Tensor, Tensor], start: int) -> Tensor:
    """Strided slices and stack (FastVideo, vLLM)."""
    cos, sin = _real(table, start, x.shape[1] // TOKENS)
    x1, x2 = x[..., ::2], x[..., 1::2]
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).flatten(-2).type_as(x)


def rope_written(x: Tensor, table: tuple[Tensor, Tensor], start: int) -> Tensor:
    """`empty_like` and strided writes; the table has a column for every channel (diffusers Wan)."""
    cos, sin = (t.repeat_interleave(2, dim=-1) for t in _real(table, start, x.shape[1] // TOKENS))
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * cos - x2 * sin
    out[..., 1::2] = x1 * sin + x2 * cos
    return out.type_as(x)


def rope_turned(x: Tensor, table: tuple[Tensor, Tensor], start: int) -> Tensor:
    """`x * cos + rotated * sin` over pairs (Hunyuan, Flux)."""
    cos, sin = (t.repeat_interleave(2, dim=-1) for t in _real(table, start, x.shape[1] // TOKENS))
    real, imag = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack([-imag, real], dim=-1).flatten(3)
    return (x.float() * cos + rotated.float() * sin).to(x.dtype)


def rope_half(x: Tensor, table: tuple[Tensor, Tensor], start: int) -> Tensor:
    """Split halves with `rotate_half` (Llama, MAGI)."""
    cos, sin = (torch.cat([t, t], dim=-1) for t in _real(table, start, x.shape[1] // TOKENS))
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-x2, x1), dim=-1) * sin).type_as(x)


def rope_half_lanes(x: Tensor, table: tuple[Tensor, Tensor], start: int) -> Tensor:
    """Split halves, each half by itself (LTX)."""
    cos, sin = _real(table, start, x.shape[1] // TOKENS)
    x1, x2 = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
    return torch.cat([cos * x1 - sin * x2, sin * x1 + cos * x2], dim=-1).type_as(x)


def rope_rates(x: Tensor, table: Tensor, start: int) -> Tensor:
    """Split halves, turned by angles that the pass computes from the rates of the pairs (Cosmos, MAGI)."""
    f, (h, w) = x.shape[1] // TOKENS, GRID
    time, row, column = table.split(list(PAIRS))
    spread = [
        torch.outer(torch.arange(start, start + f), time).view(f, 1, 1, -1).expand(f, h, w, -1),
        torch.outer(torch.arange(h), row).view(1, h, 1, -1).expand(f, h, w, -1),
        (torch.arange(w)[:, None] * column).view(1, 1, w, -1).expand(f, h, w, -1),
    ]
    angle = torch.cat(spread, dim=-1).reshape(f * h * w, 1, -1)
    cos, sin = (torch.cat([t, t], dim=-1) for t in (angle.cos(), angle.sin()))
    x1, x2 = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-x2, x1), dim=-1) * sin).type_as(x)


def rope_none(x: Tensor, table: Any, start: int) -> Tensor:
    """No rotation."""
    return x


ROPES: dict[str, tuple[Callable[..., Tensor], str | None]] = {
    "complex": (rope_complex, "complex"),
    "complex_batched": (rope_complex_batched, "complex"),
    "stacked": (rope_stacked, "interleaved"),
    "written": (rope_written, "interleaved"),
    "turned": (rope_turned, "interleaved"),
    "half": (rope_half, "split_half"),
    "half_lanes": (rope_half_lanes, "split_half"),
    "rates": (rope_rates, "split_half"),
    "none": (rope_none, None),
}


# Protocols: protocol(k, v, cache, start) -> K and V that attention reads. `start` is in tokens.


def _advance(cache: Cache, new: int, start: int) -> tuple[int, int, int]:
    """Rows held, rows to evict, and where the new rows end."""
    evicted, capacity = 0, cache["k"].shape[1]
    if start + new > cache["seen"] and cache["held"] + new > capacity:
        evicted = cache["held"] + new - capacity
    return cache["held"], evicted, cache["held"] + start + new - cache["seen"] - evicted


def _commit(cache: Cache, end: int, start: int, new: int) -> None:
    cache["held"], cache["seen"] = end, start + new


def append(k: Tensor, v: Tensor, cache: Cache, start: int, window: int = CAPACITY_FRAMES) -> tuple[Tensor, Tensor]:
    """Roll behind a sink, write in place, read a slice (Self-Forcing and most others)."""
    new = k.shape[1]
    end = _rolled(cache, new, start)
    cache["k"][:, end - new : end] = k
    cache["v"][:, end - new : end] = v
    _commit(cache, end, start, new)
    low = max(0, end - window * TOKENS)
    return cache["k"][:, low:end], cache["v"][:, low:end]


def _rolled(cache: Cache, new: int, start: int) -> int:
    """Evicts what `new` rows push out, and says where they end."""
    sink = SINK_FRAMES * TOKENS
    held, evicted, end = _advance(cache, new, start)
    if evicted:
        kept = held - evicted - sink
        for name in ("k", "v"):
            cache[name][:, sink : sink + kept] = cache[name][:, sink + evicted : sink + evicted + kept].clone()
    return end


def append_joined(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Past rows joined with the new ones, which are written into the cache behind that."""
    new = k.shape[1]
    end = _rolled(cache, new, start)
    read = [torch.cat([cache[n][:, : end - new], x], dim=1) for n, x in (("k", k), ("v", v))]
    cache["k"][:, end - new : end] = k
    cache["v"][:, end - new : end] = v
    _commit(cache, end, start, new)
    return read[0], read[1]


def append_short_window(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Attention looks back less far than the cache."""
    return append(k, v, cache, start, window=4)


def append_copy(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """`narrow` and `copy_` instead of slices and assignment; no eviction (CausVid)."""
    new, end = k.shape[1], start + k.shape[1]
    cache["k"].narrow(1, start, new).copy_(k)
    cache["v"][:, start:end].copy_(v)
    return cache["k"].narrow(1, 0, end), cache["v"][:, :end]


def append_sink_and_window(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Sink and newest rows of one buffer, joined."""
    append(k, v, cache, start)
    return _sink_and_window(cache, cache["held"])


def deferred(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """A copy takes the writes; the cache itself gets them afterwards (LongLive)."""
    copy = {"k": cache["k"].clone(), "v": cache["v"].clone(), "held": cache["held"], "seen": cache["seen"]}
    read = append(k, v, copy, start)
    append(k, v, cache, start)
    return read


def deferred_sink_and_window(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """The same, and attention reads sink and newest rows of the copy, joined."""
    copy = {"k": cache["k"].clone(), "v": cache["v"].clone(), "held": cache["held"], "seen": cache["seen"]}
    append(k, v, copy, start)
    read = _sink_and_window(copy, copy["held"])
    append(k, v, cache, start)
    return read


def _sink_and_window(cache: Cache, end: int) -> tuple[Tensor, Tensor]:
    sink = 2 * TOKENS
    low = max(sink, end - (CAPACITY_FRAMES - 3) * TOKENS)
    keys, values = (torch.cat([cache[n][:, :sink], cache[n][:, low:end]], dim=1) for n in ("k", "v"))
    return keys, values


def append_heads_first(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """A cache [B, H, C, D]."""
    end = start + k.shape[1]
    cache["k"][:, :, start:end] = k.transpose(1, 2)
    cache["v"][:, :, start:end] = v.permute(0, 2, 1, 3)
    return cache["k"][:, :, :end].transpose(1, 2), cache["v"][..., :end, :].transpose(1, 2)


def cat_past(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Concatenation; the caller keeps the result (MAGI, WorldPlay)."""
    cache["k"], cache["v"] = torch.cat([cache["k"], k], dim=1), torch.cat([cache["v"], v], dim=1)
    return cache["k"], cache["v"]


def cat_window(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Concatenation, and attention reads the newest rows."""
    cache["k"], cache["v"] = torch.cat([cache["k"], k], dim=1), torch.cat([cache["v"], v], dim=1)
    return cache["k"][:, -4 * TOKENS :], cache["v"][:, -4 * TOKENS :]


def cat_sink_and_window(k: Tensor, v: Tensor, cache: Cache, start: int) -> tuple[Tensor, Tensor]:
    """Sink, newest rows and the new ones, from a past that is kept whole."""
    parts = []
    for name, new in (("k", k), ("v", v)):
        past = cache[name]
        parts.append(torch.cat([past[:, :TOKENS], past[:, 3 * TOKENS :], new], dim=1))
    return parts[0], parts[1]


PROTOCOLS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], str]] = {
    "append": (append, "append"),
    "append_short_window": (append_short_window, "append"),
    "append_copy": (append_copy, "append"),
    "append_joined": (append_joined, "append"),
    "append_heads_first": (append_heads_first, "append"),
    "append_sink_and_window": (append_sink_and_window, "append"),
    "deferred": (deferred, "append"),
    "deferred_sink_and_window": (deferred_sink_and_window, "append"),
    "cat_past": (cat_past, "cat"),
    "cat_window": (cat_window, "cat"),
    "cat_sink_and_window": (cat_sink_and_window, "cat"),
}


# Cores: core(q, k, v) -> [B, S, H, D].


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Transposes around SDPA."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def sdpa_permuted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Permutes, copies, casts that change nothing, an explicit scale and keyword arguments."""
    q, k, v = (x.permute(0, 2, 1, 3).contiguous().to(q.dtype) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        query=q, key=k.clone(), value=v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=0.25
    )
    return out.permute(0, 2, 1, 3)


def sdpa_reshaped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads merged and split again, and the scale taken from the keys."""
    k = k.flatten(2).unflatten(2, (k.shape[2], -1)).movedim(2, 1) * 0.5
    v = v.reshape(v.shape[0], -1, v.shape[2] * v.shape[3]).view(v.shape).swapaxes(1, 2)
    return F.scaled_dot_product_attention(torch.transpose(q, 1, 2), k, v, scale=0.5).transpose(1, 2)


def sdpa_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that hides nothing."""
    mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


def sdpa_gqa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fewer K/V heads; SDPA repeats them."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=True).transpose(1, 2)


def sdpa_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fewer K/V heads, repeated by the model, in two spellings."""
    n = q.shape[2] // k.shape[2]
    k = k[:, :, :, None].expand(-1, -1, -1, n, -1).reshape(k.shape[0], k.shape[1], -1, k.shape[3])
    return sdpa(q, k, v.repeat_interleave(n, dim=2))


def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two products, softmax in float32."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax((q @ k.transpose(-2, -1) / HEAD_DIM**0.5).float(), dim=-1)
    return torch.matmul(weights.to(q.dtype), v).transpose(1, 2)


def written_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two einsums."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q * 0.25, k)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def written_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads folded into the batch, and an addend that is not used (older diffusers)."""
    rows = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in (q, k, v))
    unused = torch.empty(q.shape[0], *rows, dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(unused, q, k.transpose(-1, -2), beta=0, alpha=0.25)
    return torch.bmm(scores.softmax(dim=-1), v).view(-1, HEADS, rows[0], q.shape[-1]).transpose(1, 2)


def written_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask that hides nothing, added by `baddbmm`; batch and heads folded by a reshape."""
    batch, rows = q.shape[0], (q.shape[1], k.shape[1])
    q, k, v = (x.permute(0, 2, 1, 3).flatten(0, 1) for x in (q, k, v))
    mask = torch.zeros(1, *rows, dtype=q.dtype, device=q.device).expand(q.shape[0], -1, -1)
    weights = torch.softmax(torch.baddbmm(mask, q * HEAD_DIM**-0.5, k.mT), dim=-1)
    return (weights @ v).unflatten(0, (batch, -1)).permute(0, 2, 1, 3)


def written_filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores as [B, S, K, H], softmax over their third axis, values in front, a filled mask that hides nothing."""
    scores = torch.einsum("...qhd,...khd->...hqk", q, k) * 0.25
    hidden = torch.zeros(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
    scores = scores.masked_fill(hidden, -torch.inf).permute(0, 2, 3, 1)
    return torch.einsum("bkhd,bqkh->bqhd", v, F.softmax(scores, dim=2))


CORES: dict[str, tuple[Callable[..., Tensor], int]] = {  # with the number of K/V heads
    "sdpa": (sdpa, HEADS),
    "sdpa_permuted": (sdpa_permuted, HEADS),
    "sdpa_reshaped": (sdpa_reshaped, HEADS),
    "sdpa_masked": (sdpa_masked, HEADS),
    "sdpa_gqa": (sdpa_gqa, 2),
    "sdpa_repeated": (sdpa_repeated, 2),
    "written": (written, HEADS),
    "written_einsum": (written_einsum, HEADS),
    "written_bmm": (written_bmm, HEADS),
    "written_mask": (written_mask, HEADS),
    "written_filled": (written_filled, HEADS),
}


class SelfAttention(nn.Module):
    """Projections, RoPE, a protocol and a core.

    Args:
        rope, protocol, core: names in `ROPES`, `PROTOCOLS` and `CORES`, or functions of the same form.
        dtype: of weights and caches.
        raw_cache: whether the cache holds keys before RoPE, and attention rotates all of them by their place in what
            it reads (relative positions).
        kv_heads: heads of K and V; by default those of the core.
    """

    def __init__(
        self,
        rope: str = "complex",
        protocol: str | Callable[..., Any] = "append",
        core: str | Callable[..., Tensor] = "sdpa",
        dtype: torch.dtype = torch.float32,
        raw_cache: bool = False,
        kv_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.rope, self.rope_kind = ROPES[rope]
        self.protocol = PROTOCOLS[protocol][0] if isinstance(protocol, str) else protocol
        self.core, self.kv_heads = CORES[core] if isinstance(core, str) else (core, HEADS)
        self.kv_heads = kv_heads or self.kv_heads
        self.raw_cache = raw_cache
        self.heads_first = protocol == "append_heads_first"
        self.concatenates = isinstance(protocol, str) and PROTOCOLS[protocol][1] == "cat"
        dim, kv_dim = HEADS * HEAD_DIM, self.kv_heads * HEAD_DIM
        self.q, self.k, self.v, self.o = (nn.Linear(dim, n, dtype=dtype) for n in (dim, kv_dim, kv_dim, dim))
        self.tables = ("rates",) if rope == "rates" else ("freqs",) if self.rope_kind == "complex" else ("cos", "sin")
        angle = torch.cat(angles(), dim=1)
        self.register_buffer("rates", torch.cat(rates()).float())
        self.register_buffer("freqs", torch.polar(torch.ones_like(angle), angle))
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())
        with torch.no_grad():
            self.q.weight.mul_(4)  # peaked attention: a wrong row shows
        self.eval()

    def new_cache(self, batch: int = 1, frames: int = 0) -> Cache:
        """An empty cache; for concatenating protocols, a past of `frames` frames."""
        rows = frames * TOKENS if self.concatenates else CAPACITY_FRAMES * TOKENS
        shape = (batch, self.kv_heads, rows, HEAD_DIM) if self.heads_first else (batch, rows, self.kv_heads, HEAD_DIM)
        dtype = self.k.weight.dtype
        return {"k": torch.randn(shape, dtype=dtype), "v": torch.randn(shape, dtype=dtype), "held": 0, "seen": 0}

    def forward(self, x: Tensor, cache: Cache, start: int) -> Tensor:
        """x is [B, S, HEADS * HEAD_DIM]; `start` is the first token's index in the stream."""
        b, s = x.shape[:2]
        q = self.q(x).view(b, s, HEADS, HEAD_DIM)
        k = self.k(x).view(b, s, self.kv_heads, HEAD_DIM)
        v = self.v(x).view(b, s, self.kv_heads, HEAD_DIM)
        tables = tuple(getattr(self, name) for name in self.tables)
        table = tables if len(tables) > 1 else tables[0]
        if self.raw_cache:
            keys, values = self.protocol(k, v, cache, start)
            keys = self.rope(keys, table, 0)
            q = self.rope(q, table, (keys.shape[1] - s) // TOKENS)
        else:
            q, k = (self.rope(t, table, start // TOKENS).type_as(v) for t in (q, k))
            keys, values = self.protocol(k, v, cache, start)
        return self.o(self.core(q, keys, values).flatten(2))


def inputs(
    chunks: int, batch: int = 1, passes: int = 2, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, int]]:
    """The input and first token of every pass of a rollout with chunks of `CHUNK_FRAMES` frames."""
    generator = torch.Generator().manual_seed(0)
    for chunk in range(chunks):
        for _ in range(passes):
            x = torch.randn(batch, CHUNK_FRAMES * TOKENS, HEADS * HEAD_DIM, generator=generator)
            yield x.to(dtype), chunk * CHUNK_FRAMES * TOKENS
