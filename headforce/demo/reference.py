"""What the policy means, in eager: the example's attention, told frame by frame by the oracle what to read.

It keeps every frame as the model made it, before RoPE, and rotates each key at the position that the oracle names. It
shares no code with the compiler, its plans or its pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..policy import BoundPolicy, Chunk, HeadRule, Warmup, oracle

Reads = dict[int, int]
"""frame -> the position at which it is seen."""


@dataclass
class Control:
    """A switch that falsifies the reference: `head` of `layer` misses its newest past frame."""

    layer: int
    head: int
    on: bool = False


class OracleAttention(nn.Module):
    """Takes the place of the example's self-attention in one layer."""

    def __init__(
        self, attention: nn.Module, rules: Sequence[HeadRule], example: ModuleType, layer: int, control: Control
    ) -> None:
        super().__init__()
        self.attention = attention
        self.rules = rules
        self.example = example
        self.layer = layer
        self.control = control
        self.memory = _Memory()

    def forward(
        self, x: Tensor, rope: Tensor, grid: tuple[int, int, int], kv_cache: dict[str, Any], current_start: int
    ) -> Tensor:
        """x [B, tokens, dim] -> [B, tokens, dim]. `kv_cache` is left as it is."""
        frames, rows, columns = grid
        tokens = rows * columns
        chunk = self.memory.begin(current_start // tokens, frames)
        cos, sin = self.example.rope_angles(rope, chunk.start, grid)
        q = self.example.rotate(self.attention.query(x), cos, sin)
        k, v = self.attention.key_value(x)
        self.memory.write(chunk, k, self.example.rotate(k, cos, sin), v)
        out = torch.empty_like(q)
        for heads, queries, reads in self._readings(chunk):
            keys = [self._key(frame, position, heads, rope, grid) for frame, position in reads.items()]
            values = [self.memory.values[frame][:, :, heads] for frame in reads]
            part = slice((queries[0] - chunk.start) * tokens, (queries[-1] + 1 - chunk.start) * tokens)
            operands = (q[:, part, heads], torch.cat(keys, 1), torch.cat(values, 1))
            result = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in operands))
            out[:, part, heads] = result.transpose(1, 2)
        return self.attention.o(out.flatten(2))

    def _key(self, frame: int, position: int, heads: list[int], rope: Tensor, grid: tuple[int, int, int]) -> Tensor:
        if position == frame:
            return self.memory.rotated[frame][:, :, heads]
        cos, sin = self.example.rope_angles(rope, position, (1, *grid[1:]))
        return self.example.rotate(self.memory.raw[frame][:, :, heads], cos, sin)

    def _readings(self, chunk: Chunk) -> Iterator[tuple[list[int], list[int], Reads]]:
        """(heads, adjacent query frames, what they read): heads of one rule together, queries that read alike too."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for head, rule in enumerate(self.rules):
            falsified = self.control.on and (self.layer, head) == (self.control.layer, self.control.head)
            groups.setdefault((rule.text, falsified), []).append(head)
        for (_, falsified), heads in groups.items():
            together: list[tuple[list[int], Reads]] = []
            for query in chunk.queries:
                reads = _reads(self.rules[heads[0]], chunk, query, falsified)
                if together and together[-1][1] == reads:
                    together[-1][0].append(query)
                else:
                    together.append(([query], reads))
            for queries, reads in together:
                yield heads, queries, reads


def _reads(rule: HeadRule, chunk: Chunk, query: int, falsified: bool) -> Reads:
    warmup = None if rule.warmup is None else Warmup(rule.warmup_chunks, rule.warmup)
    past = oracle.read(rule.rule, warmup, chunk, query)
    if falsified:
        del past[max(past)]
    return past | {frame: frame for frame in chunk.queries}


@dataclass
class _Memory:
    """Every frame of a stream, [B, T, H, D] each."""

    raw: dict[int, Tensor] = field(default_factory=dict)
    rotated: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)

    def begin(self, start: int, frames: int) -> Chunk:
        if start not in self.starts:
            self.starts.append(start)
        return Chunk(self.starts.index(start), start, frames)

    def write(self, chunk: Chunk, raw: Tensor, rotated: Tensor, values: Tensor) -> None:
        for kept, new in ((self.raw, raw), (self.rotated, rotated), (self.values, values)):
            kept.update(zip(chunk.queries, new.chunk(chunk.frames, dim=1), strict=True))


def install_oracle(model: nn.Module, policy: BoundPolicy, example: ModuleType, control: Control) -> None:
    """Puts `OracleAttention` into every block of `model`, for one stream."""
    for layer, block in enumerate(model.blocks):
        block.self_attn = OracleAttention(block.self_attn, policy.rules[layer], example, layer, control)
