"""What the policy means, in eager: the example's attention, told frame by frame by the oracle what to read.

It keeps every frame as the model made it, before RoPE, and rotates each key at the position that the oracle names. It
shares no code with the compiler, its plans or its pools.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..policy import BoundPolicy, Chunk, Warmup, oracle
from ..policy.memory import Record
from ..policy.switch import Amended

Reads = dict[int, int]
"""frame -> the position at which it is seen."""

Parts = dict[oracle.Key, int]
"""A part of a frame, or a mean over several -> the position at which it is seen."""

Records = Callable[[int, int], Record | None]
"""(layer, head) -> what the stores of a head decided, for the oracle to replay; None for a head without any."""


@dataclass
class Control:
    """A switch that falsifies the reference: `head` of `layer` misses its newest past frame."""

    layer: int
    head: int
    on: bool = False


@dataclass
class Oracle:
    """What the layers share: the policy, the example's own functions, the recorded decisions, the control."""

    policy: BoundPolicy
    example: ModuleType
    records: Records
    control: Control
    amended: Callable[[int, int], Amended | None] = lambda layer, head: None
    """(layer, head) -> what prompt switches made of its history."""

    def reads(self, layer: int, head: int, chunk: Chunk, query: int) -> tuple[Reads, Parts]:
        """What one query frame of one head reads, its chunk included."""
        rule = self.policy.rules[layer][head]
        warmup = None if rule.warmup is None else Warmup(rule.warmup_chunks, rule.warmup)
        record = self.records(layer, head)
        amended = self.amended(layer, head)
        past = oracle.read(rule.rule, warmup, chunk, query, record, amended)
        parts = oracle.read_parts(rule.rule, warmup, chunk, query, record, amended)
        if self.falsifies(layer, head):
            for read in (past, parts):
                if read:
                    del read[max(read)]
                    break
        current = {frame: frame for frame in chunk.queries if rule.at(chunk).reads_chunk}
        return past | current, parts

    def cell(self, layer: int, head: int, store: str) -> tuple[int, int]:
        """(height, width) of the cells over which a store takes means; (1, 1) if it takes none."""
        op: Any = next(term.op for term in self.policy.rules[layer][head].rule.terms if term.store == store)
        return getattr(op, "height", 1), getattr(op, "width", 1)

    def falsifies(self, layer: int, head: int) -> bool:
        """True for the head that is told too little."""
        return self.control.on and (layer, head) == (self.control.layer, self.control.head)


class OracleAttention(nn.Module):
    """Takes the place of the example's self-attention in one layer."""

    def __init__(self, attention: nn.Module, oracle: Oracle, layer: int) -> None:
        super().__init__()
        self.attention: Any = attention
        self.oracle = oracle
        self.example = oracle.example
        self.layer = layer
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
        for heads, queries, (reads, parts) in self._readings(chunk):
            keys = [self._key(frame, position, heads, rope, grid) for frame, position in reads.items()]
            values = [self.memory.values[frame][:, heads] for frame in reads]
            for key, position in parts.items():
                part_key, part_value = self._part(key, position, heads, rope, grid)
                keys.append(part_key)
                values.append(part_value)
            part = slice((queries[0] - chunk.start) * tokens, (queries[-1] + 1 - chunk.start) * tokens)
            if not keys:
                out[:, part, heads] = 0
                continue
            result = F.scaled_dot_product_attention(
                q[:, part, heads].transpose(1, 2), torch.cat(keys, 2), torch.cat(values, 2)
            )
            out[:, part, heads] = result.transpose(1, 2)
        return self.attention.o(out.flatten(2))

    def _key(self, frame: int, position: int, heads: list[int], rope: Tensor, grid: tuple[int, int, int]) -> Tensor:
        if position == frame:
            return self.memory.rotated[frame][:, heads]
        cos, sin = self._angles(rope, position, grid)
        return self.example.rotate(self.memory.raw[frame][:, :, heads], cos, sin).transpose(1, 2)

    def _angles(self, rope: Tensor, position: int, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Cosine and sine for the tokens of one frame; tables begin at 0, and frames in front of a cut may not."""
        cos, sin = self.example.rope_angles(rope, abs(position), (1, *grid[1:]))
        if position < 0:
            pairs = sin.shape[-1]
            time = pairs - 2 * (pairs // 3)
            sin = torch.cat([-sin[..., :time], sin[..., time:]], dim=-1)
        return cos, sin

    def _part(
        self, key: oracle.Key, position: int, heads: list[int], rope: Tensor, grid: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, R, D] of a segment of a frame, or of the means over cells of several."""
        store, frames, index, of = key
        _, rows, columns = grid
        height, width = self.oracle.cell(self.layer, heads[0], store)
        raw = torch.stack([self.memory.raw[frame][:, :, heads] for frame in frames])
        value = torch.stack([self.memory.values[frame][:, heads].transpose(1, 2) for frame in frames])
        cos, sin = self._angles(rope, position, grid)
        if height * width > 1 or len(frames) > 1:
            # [frames, B, cells, H, D]: a row and a column of cells at a time.
            cells = (rows // height, height, columns // width, width)
            raw, value = (x.unflatten(2, cells).mean(dim=(0, 3, 5)).flatten(1, 2) for x in (raw, value))
            first = torch.arange(rows * columns).view(rows, columns)[::height, ::width].flatten()
        else:
            first = torch.arange(index * (rows * columns // of), (index + 1) * (rows * columns // of))
            raw, value = raw[0][:, first], value[0][:, first]
        return self.example.rotate(raw, cos[first], sin[first]).transpose(1, 2), value.transpose(1, 2)

    def _readings(self, chunk: Chunk) -> Iterator[tuple[list[int], list[int], tuple[Reads, Parts]]]:
        """(heads, adjacent query frames, what they read): heads of one rule together, queries that read alike too."""
        groups: dict[tuple[str, int], list[int]] = {}
        for head, rule in enumerate(self.oracle.policy.rules[self.layer]):
            alone = bool(rule.rule.stateful) or self.oracle.falsifies(self.layer, head)
            groups.setdefault((rule.text, head if alone else -1), []).append(head)
        for heads in groups.values():
            together: list[tuple[list[int], tuple[Reads, Parts]]] = []
            for query in chunk.queries:
                reads = self.oracle.reads(self.layer, heads[0], chunk, query)
                if together and together[-1][1] == reads:
                    together[-1][0].append(query)
                else:
                    together.append(([query], reads))
            for queries, reads in together:
                yield heads, queries, reads


@dataclass
class _Memory:
    """Every frame of a stream: keys before RoPE, [B, T, H, D]; rotated keys and values, [B, H, T, D]."""

    raw: dict[int, Tensor] = field(default_factory=dict)
    rotated: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)

    def begin(self, start: int, frames: int) -> Chunk:
        if start >= len(self.raw):
            self.starts.append(start)
        # Frames that are run again stay in the chunks in which they were first made.
        return Chunk(bisect_right(self.starts, start) - 1, start, frames)

    def write(self, chunk: Chunk, raw: Tensor, rotated: Tensor, values: Tensor) -> None:
        for i, frame in enumerate(chunk.queries):
            self.raw[frame], rotated_frame, value = (t.chunk(chunk.frames, dim=1)[i] for t in (raw, rotated, values))
            self.rotated[frame] = rotated_frame.transpose(1, 2).contiguous()
            self.values[frame] = value.transpose(1, 2).contiguous()


def install_oracle(model: nn.Module, oracle: Oracle) -> None:
    """Puts `OracleAttention` into every block of `model`, for one stream."""
    for layer, block in enumerate(model.get_submodule("blocks").children()):
        block.self_attn = OracleAttention(block.get_submodule("self_attn"), oracle, layer)
