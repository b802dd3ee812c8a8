"""An eager causal Wan whose attention reads exactly what the oracle says. Shares no code with the compiler."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from examples.causal_wan.attention import SelfAttention
from examples.causal_wan.model import CausalWan
from examples.causal_wan.rope import THETA, axis_pairs, rope_angles, rotate
from headforce.policy import Chunk, Policy, oracle


class OracleAttention(SelfAttention):
    """Keeps every frame's keys and values, and gathers what `oracle.read` names, head by head."""

    def setup(self, policy: Policy, layer: int, change: Callable[[int, dict[int, int]], dict[int, int]] | None) -> None:
        self.policy, self.layer, self.change = policy, layer, change
        self.frames: dict[int, tuple[Tensor, Tensor]] = {}
        self.starts: list[int] = []

    def forward(self, x, rope, grid, kv_cache, current_start):  # type: ignore[override]
        rows = grid[1] * grid[2]
        start = current_start // rows
        cos, sin = rope_angles(rope, start, grid)
        q = rotate(self.query(x), cos, sin)
        k, v = self.key_value(x)
        k = rotate(k, cos, sin)
        if start == 0:
            self.frames, self.starts = {}, []
        self.starts = [s for s in self.starts if s < start] + [start]
        chunk = Chunk(len(self.starts) - 1, start, grid[0])
        for i in range(grid[0]):
            self.frames[start + i] = (k[:, i * rows : (i + 1) * rows].clone(), v[:, i * rows : (i + 1) * rows].clone())
        out = torch.empty_like(q)
        for head in range(self.num_heads):
            rule = self.policy.rule_of(self.layer, head)
            for i, query in enumerate(chunk.queries):
                read = oracle.read(rule, self.policy.warmup, chunk, query)
                if self.change is not None:
                    read = self.change(head, read)
                keys = [self._moved(self.frames[f][0][:, :, head], p - f) for f, p in read.items()]
                values = [self.frames[f][1][:, :, head] for f in read]
                keys += [self.frames[f][0][:, :, head] for f in chunk.queries]
                values += [self.frames[f][1][:, :, head] for f in chunk.queries]
                part = slice(i * rows, (i + 1) * rows)
                scores = q[:, part, head].double() @ torch.cat(keys, 1).double().mT / math.sqrt(q.shape[-1])
                out[:, part, head] = (scores.softmax(-1) @ torch.cat(values, 1).double()).to(q.dtype)
        kv_cache["global_end_index"] = max(kv_cache["global_end_index"], current_start + x.shape[1])
        return self.o(out.flatten(2))

    def _moved(self, key: Tensor, shift: int) -> Tensor:
        """[B, T, D] turned by `shift` frames, in complex float64."""
        pairs = axis_pairs(key.shape[-1])[0]
        rate = THETA ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        turn = torch.ones(key.shape[-1] // 2, dtype=torch.complex128)
        turn[:pairs] = torch.polar(torch.ones(pairs, dtype=torch.float64), shift * rate)
        turned = torch.view_as_complex(key.double().unflatten(-1, (-1, 2))) * turn.to(key.device)
        return torch.view_as_real(turned).flatten(-2)


def oracle_model(
    model: CausalWan, policy: Policy, change: Callable[[int, dict[int, int]], dict[int, int]] | None = None
) -> CausalWan:
    """A copy of `model` whose self-attention is `OracleAttention`. `change` may falsify what a head reads."""
    twin = copy.deepcopy(model)
    for layer, block in enumerate(twin.blocks):
        block.self_attn.__class__ = OracleAttention
        block.self_attn.setup(policy, layer, change)
    return twin
