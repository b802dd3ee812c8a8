"""Attention head group by head group, as the published forks have it, in eager torch.

The heads of a class that read alike are a group: what the group keeps lies in one tensor, every pass concatenates it
with the group's part of the chunk, calls SDPA once, and puts the result back where it belongs. Classes whose pasts are
equally long share a call, as in Dummy Forcing. What heads read is asked of the oracle.

It is kept generous. RoPE is real and one kernel; which frames are read is known to the host without a question to the
device, and found once for all layers; past keys that stand elsewhere are turned once a chunk and not in every pass,
those of a call together; selections cost one wait a chunk; nothing is held that no later chunk can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from published import attend
from torch import Tensor, nn
from wan import example

from headforce.demo.example import twin
from headforce.policy import BoundPolicy, Chunk, Commit, Decide, FrameSet, HeadMemory, HeadRule, Part, oracle

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


def as_grouped(model: nn.Module, policy: BoundPolicy, rotate: Rotate = example.rotate) -> tuple[nn.Module, Decisions]:
    """A twin of the model that attends group by group, and what its heads decide. It makes one video after the other.

    Args:
        rotate: RoPE, with the arguments of the example's.
    """
    other, decisions = twin(model), Decisions(policy)
    for layer, block in enumerate(other.blocks):
        block.self_attn = GroupedAttention(block.self_attn, decisions, layer, rotate)
    return other, decisions


@dataclass(frozen=True)
class Read:
    """What query frames `first` to `stop` of a chunk, counted from its start, read of the past: where each frame and
    each part of frames stands."""

    first: int
    stop: int
    frames: dict[int, int]
    parts: dict[tuple[Any, ...], int]


@dataclass
class Decisions:
    """What the stores of the policy's rules hold: heads of one rule decide together, in their first layer.

    What is read in a chunk, and the angles of frames, are the same for all layers.
    """

    policy: BoundPolicy
    memories: dict[str, HeadMemory] = field(default_factory=dict)
    chunk: Chunk | None = None
    reads: dict[str, list[Read]] = field(default_factory=dict)
    angles: dict[tuple[int, tuple[int, int]], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def begin(self, chunk: Chunk) -> None:
        """The first layer's word that `chunk` begins."""
        self.chunk = chunk
        self.reads.clear()
        self.angles.clear()

    def read(self, rule: HeadRule) -> list[Read]:
        """What heads of the rule read in the chunk that runs."""
        if rule.text not in self.reads:
            self.reads[rule.text] = list(self._read(rule))
        return self.reads[rule.text]

    def _read(self, rule: HeadRule) -> Iterator[Read]:
        chunk, memory = self.chunk, self.memories.get(rule.text)
        assert chunk is not None
        in_force, record = rule.at(chunk), memory.explained() if memory is not None else None
        read = [
            (oracle.read(in_force, None, chunk, q, record), oracle.read_parts(in_force, None, chunk, q, record))
            for q in chunk.queries
        ]
        begin = 0
        for stop in range(1, chunk.frames + 1):
            if stop == chunk.frames or read[stop] != read[begin]:
                yield Read(begin, stop, *read[begin])
                begin = stop

    def angles_at(
        self, at: int, cell: tuple[int, int], grid: tuple[int, int, int], rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rows of a frame at `at`, of which every `cell` of tokens is one."""
        if (at, cell) not in self.angles:
            whole = example.rope_angles(rope, at, (1, *grid[1:]))
            rows = (t.view(*grid[1:], 1, -1)[:: cell[0], :: cell[1]].flatten(0, 1) for t in whole)
            self.angles[at, cell] = (next(rows), next(rows))
        return self.angles[at, cell]

    def at(self, rule: HeadRule, before: Chunk | None, now: Chunk, choose: Callable[..., FrameSet]) -> HeadMemory:
        """The memory of a rule while `now` runs; its stores are offered what became history, once."""
        if before is None or rule.text not in self.memories:
            self.memories[rule.text] = HeadMemory(rule.rule)
        memory = self.memories[rule.text]
        if before is not None and memory.committed < now.start:
            memory.commit(before, now, Decide(_never, choose), Commit(rule.rules_at(before)))
        return memory

    def record(self, layer: int, head: int) -> Any:
        """The record of a head's decisions, for the oracle to replay."""
        memory = self.memories.get(self.policy.rules[layer][head].text)
        return memory.explained() if memory is not None and memory.rule.stateful else None


def _never(store: str, held: tuple[FrameSet, ...], unit: FrameSet) -> tuple[bool, FrameSet]:
    raise NotImplementedError("episodic stores have no grouped rendering here")


@dataclass(frozen=True)
class Rows:
    """Some rows of a group, [B, R, h, D] each.

    Attributes:
        raw: keys as they were before RoPE, where they may be turned. key: keys at their own frame.
        cell: rows and columns of tokens in a frame for each of these rows; more than one where they are means.
    """

    raw: Tensor | None
    key: Tensor
    value: Tensor
    cell: tuple[int, int] = (1, 1)

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.raw, self.key, self.value) if t is not None]

    def each(self, function: Callable[[Tensor], Tensor]) -> Rows:
        return Rows(None if self.raw is None else function(self.raw), function(self.key), function(self.value))


@dataclass
class Group:
    """The heads of a layer that have one rule, and the frames and parts of frames that they hold."""

    rule: HeadRule
    heads: Tensor
    frames: dict[int, Rows] = field(default_factory=dict)
    parts: dict[tuple[Any, ...], Rows] = field(default_factory=dict)


Past = tuple[Tensor, list[Tensor], list[Tensor]]
"""Heads of a group, and their keys and values in pieces."""


@dataclass(frozen=True)
class Call:
    """One SDPA: the past of `heads` in pieces [B, R, h, D], and the query rows that read it."""

    heads: Tensor
    rows: slice
    keys: list[Tensor]
    values: list[Tensor]


class GroupedAttention(nn.Module):
    """Takes the place of the example's self-attention in one layer, with its weights. It keeps its own cache."""

    def __init__(self, attention: nn.Module, decisions: Decisions, layer: int, rotate: Rotate) -> None:
        super().__init__()
        self.attention: Any = attention
        self.decisions, self.layer, self.rotate = decisions, layer, rotate
        by_rule: dict[str, list[int]] = {}
        for head, rule in enumerate(decisions.policy.rules[layer]):
            by_rule.setdefault(rule.text, []).append(head)
        self.members = [(decisions.policy.rules[layer][heads[0]], heads) for heads in by_rule.values()]
        self.groups: list[Group] = []
        self.calls: list[Call] = []
        self.chunk: Chunk | None = None
        self.current: Rows | None = None
        self.turns = decisions.policy.policy.moves

    def forward(
        self, x: Tensor, rope: Tensor, grid: tuple[int, int, int], kv_cache: dict[str, Any], current_start: int
    ) -> Tensor:
        """x [B, tokens, dim] -> [B, tokens, dim]. `kv_cache` is left as it is."""
        own, start = self.attention, current_start // (grid[1] * grid[2])
        if self.chunk is None or start != self.chunk.start:
            self._advance(start, grid, rope)
        cos, sin = example.rope_angles(rope, start, grid)
        q = self.rotate(own.query(x), cos, sin)
        raw, v = own.key_value(x)
        k = self.rotate(raw, cos, sin)
        self.current = Rows(raw if self.turns else None, k, v)
        out = torch.empty_like(q)
        for call in self.calls:
            query = q[:, call.rows].index_select(2, call.heads)
            key = torch.cat([*call.keys, k.index_select(2, call.heads)], dim=1)
            value = torch.cat([*call.values, v.index_select(2, call.heads)], dim=1)
            out[:, call.rows].index_copy_(2, call.heads, attend(query, key, value))
        return own.o(out.flatten(2))

    @property
    def held_bytes(self) -> int:
        """Bytes of all keys and values that are kept from pass to pass, the current chunk among them."""
        rows = [r for group in self.groups for r in (*group.frames.values(), *group.parts.values())]
        rows += [self.current] if self.current is not None else []
        tensors = [t for r in rows for t in r.tensors] + [t for call in self.calls for t in (*call.keys, *call.values)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    # --- once a chunk ---------------------------------------------------------------------------------------------

    def _advance(self, start: int, grid: tuple[int, int, int], rope: Tensor) -> None:
        """The chunk before becomes history, and the calls of the next one are laid out."""
        before = self.chunk if start else None
        self.chunk = Chunk(0 if before is None else before.index + 1, start, grid[0])
        if before is None:
            self.groups = [Group(rule, torch.tensor(heads, device=rope.device)) for rule, heads in self.members]
            self.current = None
            for rule, _ in self.members:
                self.decisions.memories.pop(rule.text, None)
        if self.layer == 0:
            self.decisions.begin(self.chunk)
        tokens = grid[1] * grid[2]
        self.calls = []  # what they hold has room for what comes
        spans: dict[tuple[int, int, int], list[Past]] = {}
        for group in self.groups:
            if before is not None:
                self._commit(group, before, grid)
            for read in self.decisions.read(group.rule):
                keys, values = self._past(group, read, grid, rope)
                length = sum(t.shape[1] for t in keys)
                span = (read.first * tokens, read.stop * tokens, length)
                spans.setdefault(span, []).append((group.heads, keys, values))
        self.calls = [_call(members, slice(a, b)) for (a, b, _), members in spans.items()]

    def _commit(self, group: Group, before: Chunk, grid: tuple[int, int, int]) -> None:
        """Takes over the frames of the chunk before, lets the stores choose, and drops what nobody reads any more."""
        assert self.chunk is not None
        assert self.current is not None
        tokens, own = grid[1] * grid[2], self.current.each(lambda t: t.index_select(2, group.heads))
        for i, frame in enumerate(before.queries):
            group.frames[frame] = own.each(lambda t, i=i: t[:, i * tokens : (i + 1) * tokens].clone())
        paged = {term.store: term.op for term in group.rule.rule.paged}

        def choose(store: str, candidates: FrameSet, count: int) -> FrameSet:
            return least_alike(group.frames, candidates, count, paged[store].per_frame)

        memory = self.decisions.at(group.rule, before, self.chunk, choose)
        wanted = [(store, op, part) for store, op in paged.items() for part in op.parts(_held(memory, store))]
        parts = {(store, *part.content): (op, part) for store, op, part in wanted}
        group.parts = {
            key: group.parts[key] if key in group.parts else made(group.frames, *of, grid) for key, of in parts.items()
        }
        live = group.rule.live(self.chunk, memory.held)
        group.frames = {frame: rows for frame, rows in group.frames.items() if frame in live}

    def _past(
        self, group: Group, read: Read, grid: tuple[int, int, int], rope: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values in pieces. Keys that stand elsewhere, or nowhere, are turned from scratch, all at once."""
        pieces = [(group.frames[f], at, at != f) for f, at in read.frames.items()]
        pieces += [(group.parts[p], at, self.turns) for p, at in read.parts.items()]
        moved = [(rows, at) for rows, at, turns in pieces if turns]
        stays = [rows for rows, _, turns in pieces if not turns]
        keys = [rows.key for rows in stays]
        if moved:
            raw = torch.cat([rows.raw for rows, _ in moved if rows.raw is not None], dim=1)
            angles = [self.decisions.angles_at(at, rows.cell, grid, rope) for rows, at in moved]
            cos, sin = (torch.cat(parts) for parts in zip(*angles, strict=True))
            keys.insert(0, self.rotate(raw, cos, sin))
        return keys, [rows.value for rows in (*(rows for rows, _ in moved), *stays)]


def _held(memory: HeadMemory, store: str) -> FrameSet:
    return memory.held.get(store, FrameSet())


def _call(members: Sequence[Past], rows: slice) -> Call:
    """The call of groups with equally long pasts. Several groups are laid side by side once a chunk."""

    def past(of_groups: list[list[Tensor]]) -> list[Tensor]:
        if len(members) == 1 or not of_groups[0]:
            return of_groups[0]
        return [torch.cat([torch.cat(pieces, dim=1) for pieces in of_groups], dim=2)]

    heads, keys, values = (list(of_groups) for of_groups in zip(*members, strict=True))
    return Call(torch.cat(heads), rows, past(keys), past(values))


def least_alike(frames: dict[int, Rows], candidates: FrameSet, count: int, of: int) -> FrameSet:
    """Forcing-KV's choice among segments, `of` to a frame: those whose keys, all heads together, are least like the
    keys one frame later. Of equal ones the first."""
    compared = sorted({segment // of for segment in candidates})
    likeness = [torch.cosine_similarity(_long(frames[f]), _long(frames[f + 1]), dim=-1) for f in compared]
    scores = torch.stack(likeness).unflatten(1, (of, -1)).mean(-1).tolist()
    score = {f * of + i: one for f, of_frame in zip(compared, scores, strict=True) for i, one in enumerate(of_frame)}
    return FrameSet.of(sorted(candidates, key=score.__getitem__)[:count])


def _long(rows: Rows) -> Tensor:
    """The keys of all heads of the first video as one, [R, h * D]."""
    return rows.key[0].float().flatten(1)


def made(frames: dict[int, Rows], op: Any, part: Part, grid: tuple[int, int, int]) -> Rows:
    """A part out of the frames it is made of: a segment as it is, or the mean over cells of several frames."""
    if op.name == "select":
        length = grid[1] * grid[2] // part.of
        return frames[part.at].each(lambda t: t[:, part.index * length : (part.index + 1) * length].clone())
    cells = (grid[1] // op.height, op.height, grid[2] // op.width, op.width)

    def mean(name: str) -> Tensor:
        stacked = torch.stack([getattr(frames[f], name) for f in part.frames])
        return stacked.unflatten(2, cells).float().mean(dim=(0, 3, 5)).flatten(1, 2).to(stacked.dtype)

    raw = mean("raw")
    return Rows(raw, raw, mean("value"), (op.height, op.width))
