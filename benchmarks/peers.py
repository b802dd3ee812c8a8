"""The variants of `attention.py`: headforce's targets, and what one would use instead.

Every variant computes the same attention of one layer from the same caches; what is made once for a chunk, not for
every pass, is made when a variant is built and costs nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from clock import Clock
from plans import CHUNK, DENSE, Case, Part
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from headforce.errors import HeadforceError
from headforce.kernels.rotation import INTERLEAVED
from headforce.lowering.targets import find_target

BLOCK = 128
"""Rows of a block of flex_attention's mask."""


class Unsupported(Exception):
    """A peer cannot do what a plan asks for."""


def first_line(error: Exception | None) -> str:
    """What an exception says, in one line."""
    if isinstance(error, HeadforceError):
        return f"{error.code}: found {error.found}; needed {error.needed}"
    name = "" if isinstance(error, Unsupported) else f"{type(error).__name__}: "
    return name + (str(error).strip() or "no message").splitlines()[0]


@dataclass
class Work:
    """One way to compute a case: `run` gives [1, S, H, D]; `copy` makes the copies of a run and nothing else."""

    run: Callable[[], Tensor]
    copy: Callable[[], object] | None = None
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """`build` makes the work of a case. `dense`: reads all 21 frames whatever the plan. `ours`: a target."""

    name: str
    build: Callable[[Case, Clock], Work]
    dense: bool = False
    ours: bool = False


def target_of(name: str) -> Variant:
    """A target of headforce, called as a lowered graph calls it."""

    def build(case: Case, clock: Clock) -> Work:
        target, layer, pool = find_target(name), case.layer, case.pool
        theta = layer.theta if case.policy.policy.moves else layer.theta[:0]
        tables = (pool.reads[0], pool.runs[0], theta, 0, INTERLEAVED, layer.scale)
        return Work(lambda: target(layer.query, pool.k, pool.v, *tables))

    return Variant(name, build, ours=True)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, backend: SDPBackend) -> Tensor:
    """SDPA of [h, rows, D] with one backend."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query[None], key[None], value[None], scale=scale)[0]


def dense_with(name: str, backend: SDPBackend) -> Variant:
    def build(case: Case, clock: Clock) -> Work:
        layer = case.layer
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (layer.query, layer.key, layer.value))
        return Work(lambda: attend(query, key, value, layer.scale, backend).transpose(0, 1)[None])

    return Variant(name, build, dense=True)


class Gather:
    """The copies that a part costs in every pass: its query rows, and its keys and values in one piece.

    Like the published forks, but generous: what is held lies ready, class by class and head by head, in one tensor of
    the frames that are to be turned and one of the others; cosines and sines are known; the turn is one compiled
    kernel.
    """

    def __init__(self, case: Case, part: Part, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        layer, tokens = case.layer, case.shape.tokens
        self.part, self.layer, self.turn, self.rows = part, layer, turn, case.span(part)
        self.heads = torch.tensor(part.heads, device=layer.device)
        moved = [frame for frame, _ in part.moved]
        self.moved = case.rows(moved, layer.key, part.heads).unflatten(1, (len(moved), tokens)) if moved else None
        self.still = case.rows(part.still, layer.key, part.heads)
        self.values = case.rows((*moved, *part.still), layer.value, part.heads)
        shifts = torch.tensor([shift for _, shift in part.moved], dtype=torch.float64, device=layer.device)
        angles = F.pad(shifts[:, None] * layer.theta, (0, case.shape.dim // 2 - len(layer.theta)))[:, None]
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        # One part for all heads and the whole of the dense cache: nothing has to be copied.
        self.whole = case.parts == [part] and not moved and len(part.keys) == DENSE

    def query(self) -> Tensor:
        if self.whole:
            return self.layer.query[0].transpose(0, 1)
        return self.layer.query[0, self.rows].index_select(1, self.heads).transpose(0, 1)

    def key(self, out: Tensor | None = None) -> Tensor:
        if self.whole and out is None:
            return self.layer.key[0].transpose(0, 1)
        turned = [] if self.moved is None else [self.turn(self.moved, self.cos, self.sin).flatten(1, 2)]
        return torch.cat([*turned, self.still, self._chunk(self.layer.key)], dim=1, out=out)

    def value(self, out: Tensor | None = None) -> Tensor:
        if self.whole and out is None:
            return self.layer.value[0].transpose(0, 1)
        return torch.cat([self.values, self._chunk(self.layer.value)], dim=1, out=out)

    def scatter(self, result: Tensor, out: Tensor) -> None:
        """Puts [h, rows, D] where it belongs in [1, S, H, D]."""
        out[0, self.rows].index_copy_(1, self.heads, result.transpose(0, 1))

    def _chunk(self, cache: Tensor) -> Tensor:
        return cache[0, -self.layer.query.shape[1] :].index_select(1, self.heads).transpose(0, 1)


def turned(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Keys [h, F, T, D] with their interleaved pairs turned by the angles [F, 1, D / 2] of each frame."""
    a, b = key.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(key.dtype)


def gathers_of(case: Case) -> tuple[list[Gather], str]:
    """The copies of every part of a case, and a note if keys have to be turned by uncompiled torch."""
    turn, note = turned, ""
    if case.layer.device.type == "cuda" and any(part.moved for part in case.parts):
        compiled = torch.compile(turned, dynamic=True)
        try:
            Gather(case, next(part for part in case.parts if part.moved), compiled).key()
            turn = compiled
        except Exception as error:
            note = f"keys turned by uncompiled torch: {first_line(error)}"
    return [Gather(case, part, turn) for part in case.parts], note


def grouped_with(*backends: SDPBackend) -> Variant:
    """One SDPA for every part, one after the other, each with the fastest of `backends` for its own shape."""

    def build(case: Case, clock: Clock) -> Work:
        gathers, note = gathers_of(case)
        chosen = [fastest(gather, backends, clock) for gather in gathers]
        layer = case.layer
        if gathers[0].whole:
            inputs = (gathers[0].query(), gathers[0].key(), gathers[0].value())
            note = f"{names_of(chosen)}; nothing to copy"
            return Work(lambda: attend(*inputs, layer.scale, chosen[0]).transpose(0, 1)[None], note=note)

        def run(copies_only: bool = False) -> Tensor:
            out = torch.empty_like(layer.query)
            values: dict[object, Tensor] = {}  # of readings that differ in their shifts alone
            for gather, backend in zip(gathers, chosen, strict=True):
                part = gather.part
                query, key = gather.query(), gather.key()
                same = (part.heads, tuple(frame for frame, _ in part.moved), part.still)
                if same not in values:
                    values = {same: gather.value()}
                result = query if copies_only else attend(query, key, values[same], layer.scale, backend)
                gather.scatter(result, out)
            return out

        note = "; ".join(filter(None, (names_of(chosen), note)))
        return Work(run, functools.partial(run, copies_only=True), note)

    return Variant("grouped", build)


def names_of(backends: list[SDPBackend]) -> str:
    """Backends by the names of the dense variants, each once."""
    return ", ".join(dict.fromkeys(backend.name.removesuffix("_ATTENTION").lower() for backend in backends))


def fastest(gather: Gather, backends: tuple[SDPBackend, ...], clock: Clock) -> SDPBackend:
    """The backend that computes a part in the least time; the first one that can if times are not taken."""
    inputs = (gather.query(), gather.key(), gather.value())
    times: dict[SDPBackend, float] = {}
    reason: Exception | None = None
    for backend in backends:
        run = functools.partial(attend, *inputs, gather.layer.scale, backend)
        try:
            run()
            times[backend] = clock(run, short=True) or 0.0
        except Exception as error:
            reason = error
    if not times:
        raise Unsupported(f"no backend computes a group: {first_line(reason)}")
    return min(times, key=lambda backend: times[backend])


def build_varlen(case: Case, clock: Clock) -> Work:
    """Every head of every part is a sequence, as Pyramid Forcing has it; all in one call."""
    from torch.nn.attention.varlen import varlen_attn

    gathers, note = gathers_of(case)
    layer, dim = case.layer, case.shape.dim
    query_rows = [gather.rows.stop - gather.rows.start for gather in gathers]
    key_rows = [len(gather.part.keys) * case.shape.tokens for gather in gathers]
    heads = [len(gather.part.heads) for gather in gathers]

    def packed(rows: list[int]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Room for all sequences [rows, 1, D], its parts [h, rows, D], and where sequences begin."""
        sizes = [h * n for h, n in zip(heads, rows, strict=True)]
        whole = torch.empty((sum(sizes), 1, dim), dtype=layer.dtype, device=layer.device)
        views = [view.view(h, n, dim) for view, h, n in zip(whole.split(sizes), heads, rows, strict=True)]
        lengths = [0, *(n for h, n in zip(heads, rows, strict=True) for _ in range(h))]
        begins = torch.tensor(lengths, device=layer.device).cumsum(0).to(torch.int32)
        return whole, views, begins

    query, query_parts, query_begins = packed(query_rows)
    key, key_parts, key_begins = packed(key_rows)
    value, value_parts, _ = packed(key_rows)

    def run(copies_only: bool = False) -> Tensor:
        for i, gather in enumerate(gathers):
            query_parts[i].copy_(gather.query())
            gather.key(out=key_parts[i])
            gather.value(out=value_parts[i])
        result = query
        if not copies_only:
            result = varlen_attn(query, key, value, query_begins, key_begins, max(query_rows), max(key_rows))
        out = torch.empty_like(layer.query)
        for gather, part in zip(gathers, result.split([part[..., 0].numel() for part in query_parts]), strict=True):
            gather.scatter(part.view(len(gather.part.heads), -1, dim), out)
        return out

    return Work(run, functools.partial(run, copies_only=True), note)


def build_flex(case: Case, clock: Clock) -> Work:
    if any(part.moved for part in case.parts):
        raise Unsupported("flex_attention cannot turn the keys of a frame for some heads and queries")
    layer = case.layer
    mask = block_mask(frames_read(case), case.shape.tokens)
    query, key, value = (tensor.transpose(1, 2) for tensor in (layer.query, layer.key, layer.value))
    run = compiled_flex() if layer.device.type == "cuda" else flex_attention
    return Work(lambda: run(query, key, value, block_mask=mask, scale=layer.scale).transpose(1, 2))


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def frames_read(case: Case) -> Tensor:
    """[H, 3, 21]: whether a head's query frame reads a frame of the cache."""
    read = torch.zeros((case.shape.heads, CHUNK, DENSE), dtype=torch.bool)
    for part in case.parts:
        for head in part.heads:
            for query in part.queries:
                read[head, query, [case.place[frame] for frame, _ in part.keys]] = True
    return read.to(case.layer.device)


def block_mask(read: Tensor, tokens: int) -> BlockMask:
    """The mask [H, 3, 21] of frames as blocks of rows. `create_block_mask` would look at every pair of rows."""
    some, every, count = read.float(), read.float(), []
    for dim, frames in ((2, read.shape[2]), (1, read.shape[1])):
        touches = _touches(frames, tokens).to(read.device)  # [blocks, frames]
        some = (some.movedim(dim, -1) @ touches.T > 0).float().movedim(-1, dim)
        every = (every.movedim(dim, -1) @ touches.T == touches.sum(1)).float().movedim(-1, dim)
        count.append(frames * tokens)
        if frames * tokens % BLOCK:
            every.select(dim, -1).zero_()  # the last block goes past the end
    partial = (some > every)[None]

    def keep(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return read[head, query // tokens, key // tokens]

    keys, queries = count
    blocks = (*_indices(partial), *_indices(every[None] > 0))
    return BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=BLOCK, mask_mod=keep, seq_lengths=(queries, keys))


def _touches(frames: int, tokens: int) -> Tensor:
    """[blocks, frames]: 1 where a block has rows of a frame."""
    first = torch.arange(math.ceil(frames * tokens / BLOCK))[:, None] * BLOCK
    begins = torch.arange(frames) * tokens
    return ((begins < first + BLOCK) & (begins + tokens > first)).float()


def _indices(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row of the mask has, and which, those first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).int(), order.int().contiguous()


def variants(targets: Iterable[str], dry: bool, few_peers: bool = False) -> list[Variant]:
    """All variants of a case, in the order in which they are measured; the first one is the yardstick.

    `few_peers`: of the peers, those alone that others are compared with.
    """
    dense = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    if dry:
        dense = {"math": SDPBackend.MATH}
    peers = [grouped_with(*dense.values())]
    if not few_peers:
        peers += [Variant("flex", build_flex), Variant("varlen", build_varlen)]
    return [*(dense_with(*entry) for entry in dense.items()), *peers, *map(target_of, targets)]
