"""The smallest launch that still fails: fewer heads, query rows, runs, key rows, columns, in that order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...kernels.rotation import INTERLEAVED
from ..watch import Launch
from .case import Case

ATTEMPTS = 400
"""Smaller cases that are tried at most."""


def shrink(case: Case) -> Case:
    """A case that fails, and of which no smaller one that is tried here does. One that does not fail is handed back."""
    attempts = 0
    smaller = True
    while smaller and attempts < ATTEMPTS:
        smaller = False
        for candidate in _smaller(case):
            attempts += 1
            if candidate.size < case.size and candidate.fails:
                case, smaller = candidate, True
                break
            if attempts >= ATTEMPTS:
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Candidates, those that take away most first."""
    launch = case.launch
    reads = launch.reads.tolist()
    live = [i for i, read in enumerate(reads) if read[3] and read[5]]
    for chosen in _portions(live):
        yield replace(case, launch=_only_reads(launch, chosen))
    for chosen in _portions(range(launch.query.shape[1])):
        yield replace(case, launch=_only_rows(launch, chosen))
    for chosen in _portions(range(len(launch.runs))):
        if chosen:
            yield replace(case, launch=_only_runs(launch, set(chosen)))
    yield from (replace(case, launch=_shorter_runs(launch, divisor)) for divisor in (8, 2))
    yield replace(case, launch=_compact(launch))
    pairs = launch.query.shape[-1] // 2
    if pairs > 1:
        yield replace(case, launch=_fewer_pairs(launch, pairs // 2))
    if launch.value.shape[-1] > 1:
        yield replace(case, launch=launch._replace(value=launch.value[..., : launch.value.shape[-1] // 2].contiguous()))


def _portions(items: range | list[int]) -> Iterator[list[int]]:
    """Halves, quarters and so on of a list, then all but one of it."""
    items = list(items)
    size = len(items) // 2
    while size:
        yield from (items[i : i + size] for i in range(0, len(items), size))
        size //= 2
    if 2 < len(items) <= 16:
        yield from (items[:i] + items[i + 1 :] for i in range(len(items)))


def _only_reads(launch: Launch, chosen: list[int]) -> Launch:
    """Some reads, and the heads and batch rows that they are of. Operands keep theirs by number."""
    reads = launch.reads[chosen].clone()
    heads, batches = (sorted(set(reads[:, column].tolist())) for column in (1, 0))
    if launch.key.dim() == 4:  # K and V heads belong to query heads by their number
        return launch._replace(reads=reads)
    reads[:, 1] = torch.tensor([heads.index(h) for h in reads[:, 1].tolist()], dtype=reads.dtype)
    reads[:, 0] = torch.tensor([batches.index(b) for b in reads[:, 0].tolist()], dtype=reads.dtype)
    return launch._replace(reads=reads, query=launch.query[batches][:, :, heads].contiguous())


def _only_rows(launch: Launch, chosen: list[int]) -> Launch:
    """Some adjacent query rows."""
    low, high = chosen[0], chosen[-1] + 1
    reads = launch.reads.clone()
    first, count = reads[:, 2], reads[:, 3]
    begin, end = first.clamp(low, high), (first + count).clamp(low, high)
    reads[:, 2], reads[:, 3] = begin - low, end - begin
    return launch._replace(reads=reads, query=launch.query[:, low:high].contiguous())


def _only_runs(launch: Launch, chosen: set[int]) -> Launch:
    """Some runs, of every read that has one of them."""
    reads, runs = launch.reads.clone(), launch.runs.tolist()
    kept: list[list[int]] = []
    for read in reads:
        first, count = int(read[4]), int(read[5])
        mine = [runs[i] for i in range(first, first + count) if i in chosen]
        read[4], read[5] = len(kept), len(mine)
        kept += mine
    return launch._replace(reads=reads, runs=launch.runs.new_tensor(kept or [[0, 0, 0]]))


def _shorter_runs(launch: Launch, divisor: int) -> Launch:
    runs = launch.runs.clone()
    runs[:, 1] = (runs[:, 1] // divisor).clamp(min=1)
    return launch._replace(runs=runs)


def _compact(launch: Launch) -> Launch:
    """Pages without the rows that no run names: each run's rows, one after the other."""
    if launch.key.dim() == 4:
        return launch
    used = [(int(first), int(count)) for _, _, _, rows, first, count, *_ in launch.reads.tolist() if rows]
    numbers = [i for first, count in used for i in range(first, first + count)]
    flat = [x.flatten(0, 1) for x in (launch.key, launch.value)]
    runs = launch.runs.clone()
    parts: list[list[Tensor]] = [[], []]
    at, page = 0, launch.key.shape[1]
    for i in dict.fromkeys(numbers):
        row, rows, _ = runs[i].tolist()
        runs[i, 0] = at
        for part, source in zip(parts, flat, strict=True):
            part.append(source[row : row + rows])
        at += rows
    if not at:
        return launch
    size = min(page, at) if at % page == 0 else at
    key, value = (torch.cat(part).unflatten(0, (-1, size)) for part in parts)
    return launch._replace(key=key, value=value, runs=runs)


def _fewer_pairs(launch: Launch, pairs: int) -> Launch:
    """The first `pairs` pairs of columns, wherever they lie."""
    half = launch.query.shape[-1] // 2
    split = [*range(pairs), *range(half, half + pairs)]
    columns = list(range(2 * pairs)) if launch.style == INTERLEAVED else split
    theta = launch.theta[: max(0, pairs - launch.first_pair)]
    first = launch.first_pair if len(theta) else 0
    query, key = (x[..., columns].contiguous() for x in (launch.query, launch.key))
    return launch._replace(query=query, key=key, theta=theta, first_pair=first)
