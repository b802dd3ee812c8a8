"""What must not be rewritten: small changes of a layer of the zoo, each with the code that it is refused with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import zoo
from .zoo import TOKENS, Cache

Pair = tuple[Tensor, Tensor]

# Protocols, each `zoo.append` with one thing changed.


def write(k: Tensor, v: Tensor, cache: Cache, start: int) -> int:
    """Writes the new rows in place; returns where they end."""
    end = start + k.shape[1]
    cache["k"][:, start:end] = k
    cache["v"][:, start:end] = v
    return end


def read_short(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """The newest frame is written and not read."""
    end = write(k, v, cache, start) - TOKENS
    return cache["k"][:, :end], cache["v"][:, :end]


def read_far(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """Rows behind the new ones are read."""
    end = write(k, v, cache, start) + TOKENS
    return cache["k"][:, :end], cache["v"][:, :end]


def read_first(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """The slice is taken before the write."""
    end = start + k.shape[1]
    keys, values = cache["k"][:, :end], cache["v"][:, :end]
    write(k, v, cache, start)
    return keys, values


def other_rows(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """Keys and values in different rows of their caches."""
    n = k.shape[1]
    cache["k"][:, start + TOKENS - n : start + TOKENS] = k
    cache["v"][:, start : start + n] = v
    return cache["k"][:, : start + TOKENS], cache["v"][:, n - TOKENS : start + n]


def read_twice(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """Something else looks at the cache."""
    end = write(k, v, cache, start)
    cache["seen"] = cache["k"][:, :TOKENS].sum()
    return cache["k"][:, :end], cache["v"][:, :end]


def shared(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """One tensor for keys and values."""
    end = start + k.shape[1]
    cache["k"][:, start:end] = k + v
    return cache["k"][:, :end], cache["k"][:, :end]


def indexed(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """Rows are written by a tensor of places."""
    end = start + k.shape[1]
    for name, new in (("k", k), ("v", v)):
        cache[name].index_copy_(1, torch.arange(start, end), new)
    return cache["k"][:, :end], cache["v"][:, :end]


def blended(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """New rows are also blended into the first ones."""
    end = write(k, v, cache, start)
    cache["k"][:, :TOKENS] = k[:, :TOKENS] * 0.1
    return cache["k"][:, :end], cache["v"][:, :end]


def leaves_a_gap(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """A roll that moves rows to the back."""
    for name in ("k", "v"):
        cache[name][:, 2 * TOKENS : 3 * TOKENS] = cache[name][:, TOKENS : 2 * TOKENS].clone()
    end = write(k, v, cache, start)
    return cache["k"][:, :end], cache["v"][:, :end]


def not_committed(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """The copy of the cache is written, the cache is not."""
    return zoo.append(k, v, {**cache, "k": cache["k"].clone(), "v": cache["v"].clone()}, start)


def no_history(k: Tensor, v: Tensor, cache: Cache, start: int) -> Pair:
    """Nothing is kept."""
    return k, v


PROTOCOL_FAULTS: dict[str, Callable[[Tensor, Tensor, Cache, int], Pair]] = {
    f.__name__: f
    for f in (
        read_short, read_far, read_first, other_rows, read_twice, shared, indexed, blended, leaves_a_gap, not_committed,
        no_history,
    )
}  # fmt: skip

CORE_FAULTS: dict[str, Callable[[str, str, bool], bool]] = {
    # Whether the fault can be put into (product, mask, grouped heads); `cores.attend` does it.
    "causal": lambda product, mask, grouped: mask == "none",
    "mask from data": lambda product, mask, grouped: mask == "none" and product != "flex",
    "first rows hidden": lambda product, mask, grouped: mask == "none",
    "dropout": lambda product, mask, grouped: product == "sdpa",
    "soft cap": lambda product, mask, grouped: product != "sdpa",
    "bias": lambda product, mask, grouped: product != "sdpa" and mask == "none",
    "exponentials": lambda product, mask, grouped: product in ("matmul", "einsum", "bmm"),
    "weights read": lambda product, mask, grouped: product in ("matmul", "einsum", "einsum_rows", "bmm", "baddbmm"),
    "scaled twice": lambda product, mask, grouped: product in ("matmul", "einsum", "bmm"),
    "called twice": lambda product, mask, grouped: product == "sdpa",
    "tiled heads": lambda product, mask, grouped: grouped,
    "heads in front": lambda product, mask, grouped: product == "sdpa" and mask == "none" and not grouped,
}

FAULTS: dict[str, str] = {
    "read_short": "HF-CACHE-RANGE",
    "read_far": "HF-CACHE-RANGE",
    "read_first": "HF-CACHE-ORDER",
    "other_rows": "HF-KV-RANGE",
    "read_twice": "HF-ESCAPE",
    "shared": "HF-SHARED-KV",
    "indexed": "HF-CACHE-FORM",
    "blended": "HF-CACHE-FORM",
    "leaves_a_gap": "HF-ROLL",
    "not_committed": "HF-CACHE-COMMIT",
    "no_history": "HF-NOHISTORY",
    "causal": "HF-MASK",
    "mask from data": "HF-MASK",
    "first rows hidden": "HF-MASK",
    "dropout": "HF-DROPOUT",
    "soft cap": "HF-SCOREMOD",
    "bias": "HF-SCOREMOD",
    "exponentials": "HF-ATTENTION-FORM",
    "weights read": "HF-ESCAPE",
    "scaled twice": "HF-ATTENTION-FORM",
    "called twice": "HF-ESCAPE",
    "tiled heads": "HF-CACHE-FORM",
    "heads in front": "HF-LAYOUT",
    "no rope": "HF-CLOCK",
    "gradients": "HF-GRAD",
}
