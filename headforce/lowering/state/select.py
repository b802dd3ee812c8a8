"""What a selection keeps: scores of all candidates at once, and one copy to the host for all heads together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...errors import HeadforceError
from ...policy import BoundPolicy, FrameSet, Part, Policy
from ...policy.node import Term
from ...policy.ops.select import Select
from ..lane import Lane
from ..plan import Cell
from ..pool import PagePool
from ..stream import Stream
from .making import maker
from .rows import Rows
from .score import Score, Segments, find_score
from .turning import Turning

Choose = Callable[[str, FrameSet, int], FrameSet]
"""See `Decide.choose`."""

IN_ORDER = ("window", "span", "paced")
"""Operators that let go of their oldest frames first, so that the frame behind each is still there."""

Scores = dict[int, float]
"""Segment (frame * segments + number) -> score."""


@dataclass(frozen=True)
class _Group:
    """Heads that decide together in one store, and what they may have to compare.

    Attributes:
        cells: the heads. segments: the candidates that there may be, in order: all that arrive and all that are held.
    """

    op: Select
    cells: tuple[Cell, ...]
    segments: tuple[int, ...]


def selection(pool: PagePool, turning: Turning, queries: Sequence[Tensor] | None = None) -> Callable[[Lane], Choose]:
    """What selections choose at the next commit of the pool's stream, see `Decide.choose`; to be made anew for every
    commit.

    Candidates are scored in float32. Of equal ones the first is better. Raises HF-SCORE for a candidate that the score
    says nothing about, and HF-ROPE for a score on raw keys where it is not known how keys were turned.
    """
    scores: dict[_Group, Scores] = {}

    def of_lane(lane: Lane) -> Choose:
        def choose(store: str, candidates: FrameSet, count: int) -> FrameSet:
            if not scores:
                groups = [_group(pool.stream, lane, term) for lane, term in _selections(pool.stream)]
                scores.update(_scored(pool, turning, queries, list(dict.fromkeys(groups))))
            term = next(term for term in lane.rule.rule.paged if term.store == store)
            group = _group(pool.stream, lane, term)
            return best(scores[group], candidates, count, find_score(group.op.score))

        return choose

    return of_lane


def asks_queries(policy: Policy) -> bool:
    """Whether some selection of `policy` is scored by the queries of the last pass, which then have to be kept.

    Raises HF-SCORE for a score that nobody knows.
    """
    ops = [term.op for rule in policy.classes.values() for term in rule.paged]
    return True in {find_score(op.score).queries for op in ops if isinstance(op, Select)}


def check_selections(policy: BoundPolicy) -> None:
    """HF-SCORE for selections whose candidates could not all be scored, before a video has begun."""
    for rule in policy.distinct:
        for term in rule.rule.paged:
            op = term.op
            if not isinstance(op, Select) or not find_score(op.score).following:
                continue
            feeder = next(other for other in rule.rule.terms if other.store == op.feeds_from)
            if op.pool == "all" or feeder.op.name not in IN_ORDER:
                raise HeadforceError(
                    "HF-SCORE",
                    site=f"rule {rule.rule}",
                    found=f"{term}, scored by the frame behind each candidate, which may be gone",
                    needed=f"pool=new, and a source among {', '.join(IN_ORDER)}",
                )


def best(scores: Scores, candidates: FrameSet, count: int, by: Score) -> FrameSet:
    """The `count` best of `candidates`; of equal ones the first."""
    sign = 1.0 if by.best == "lowest" else -1.0
    unscored = [s for s in candidates if math.isnan(scores.get(s, math.nan))]
    if unscored:
        raise HeadforceError(
            "HF-SCORE",
            found=f"segments {unscored[:4]}, about which {by.name} says nothing",
            needed="candidates with a frame behind them, and keys that are numbers"
            if by.following
            else "keys that are numbers",
        )
    return FrameSet.of(sorted(candidates, key=lambda s: sign * scores[s])[:count])


def _selections(stream: Stream) -> Iterator[tuple[Lane, Term]]:
    for lane in stream.lanes:
        for term in lane.rule.rule.paged:
            if isinstance(term.op, Select):
                yield lane, term


def _group(stream: Stream, lane: Lane, term: Term) -> _Group:
    op, chunk = term.op, stream.chunk
    assert isinstance(op, Select)
    assert chunk is not None
    arriving = FrameSet.interval(chunk.start, min(chunk.stop, stream.committing))
    feeder = next(other for other in lane.rule.rule.terms if other.store == op.feeds_from)
    held = lane.held.get(feeder.store, FrameSet()) if feeder.op.stateful else feeder.op.live(chunk)
    (segments,) = op.units((held | arriving) & lane.slots.held) or (FrameSet(),)
    if op.pool == "all":
        segments |= lane.held.get(term.store, FrameSet())
    return _Group(op, _deciding(stream, lane, op), tuple(segments))


def _deciding(stream: Stream, lane: Lane, op: Select) -> tuple[Cell, ...]:
    """The heads whose keys are looked at: the head itself, those of its layer, or of the first layer with the rule."""
    layer, row, _ = lane.first
    if op.scope == "head":
        return (lane.first,)
    of_layer = range(layer + 1) if op.scope == "model" else range(layer, layer + 1)
    for number in of_layer:
        rules = stream.policy.rules[number]
        heads = [h for h in range(stream.policy.heads) if rules[h].text == lane.rule.text]
        if heads:
            return tuple((number, row, h) for h in heads)
    raise AssertionError("the lane's own layer has its rule")


def _scored(
    pool: PagePool, turning: Turning, queries: Sequence[Tensor] | None, groups: list[_Group]
) -> dict[_Group, Scores]:
    """The scores of all groups; the host waits once."""
    numbers: list[Tensor] = []
    for group in groups:  # one after the other: the keys of all heads at once would be as large as the pool
        by = find_score(group.op.score)
        found = by.function(_segments(pool, turning, queries, group, by)) if group.segments else torch.zeros(1, 0)
        numbers.append(found.flatten().float().to(pool.k.device))
    values = iter(torch.cat(numbers).tolist())
    return {group: {s: next(values) for s in group.segments} for group in groups}


def _segments(pool: PagePool, turning: Turning, queries: Sequence[Tensor] | None, group: _Group, by: Score) -> Segments:
    """The candidates of one group as a score wants to see them."""
    n = group.op.per_frame
    parts = group.op.parts(FrameSet.of(group.segments))
    # Of a pass that becomes history only in part, the rest is no frame of the video.
    last = pool.stream.committing - 1

    def keys(shift: Callable[[Part], int]) -> Tensor:
        """[1, H, m, R, D]: the segments `shift` frames behind the candidates; NaN where they are not held."""
        wanted = [Part(p.at + shift(p), (p.at + shift(p),), p.index, n, 0) for p in parts]
        of_lanes = [tuple(cells) for _, cells in groupby(group.cells, key=lambda cell: pool.stream.lane_of[cell])]
        return torch.cat([_keys(pool, turning, cells, wanted, by) for cells in of_lanes])[None]

    return Segments(
        keys(lambda part: 0),
        keys(lambda part: 1) if by.following else None,
        keys(lambda part: last - part.at) if by.newest else None,
        _queries(queries, group, by) if by.queries else None,
    )


def _queries(queries: Sequence[Tensor] | None, group: _Group, by: Score) -> Tensor:
    """[1, H, D]: the mean queries of a group's heads in the last pass."""
    if queries is None:
        raise HeadforceError("HF-SCORE", found=f"the score {by.name}, and no queries", needed="a pass that kept them")
    return torch.stack([queries[layer][row, 0, head] for layer, row, head in group.cells])[None]


def _keys(pool: PagePool, turning: Turning, cells: Sequence[Cell], parts: Sequence[Part], by: Score) -> Tensor:
    """[H, m, R, D]: the keys of segments in heads of one lane, in float32; NaN for those that it does not hold."""
    assert pool.regions is not None
    layer, row, head = cells[0]
    lane = pool.stream.lane(layer, head, row)
    base = torch.tensor([pool.regions.base[cell] for cell in cells]).to(pool.k.device)
    rows = Rows(pool.k, pool.v, base, lane.slots.slot, lane.where())
    places = [rows.where(part) if part.at < pool.stream.committing else None for part in parts]
    keys = rows.take(pool.k, [0 if place is None else place for place in places], parts[0].of).float()
    if by.raw:
        begins = [part.index * keys.shape[-2] for part in parts]
        keys = turning.raw_rows(keys, [part.at for part in parts], begins, f"the score {by.name}")
    missing = [place is None for place in places]
    if any(missing):
        keys = keys.masked_fill(torch.tensor(missing).to(keys.device)[:, None, None], torch.nan)
    return keys


@maker("select")
def copied(rows: Rows, op: Select, parts: Sequence[Part], turning: Turning) -> tuple[Tensor, Tensor]:
    """The segments as they are, out of their frames or out of the store itself."""
    places = [place for place in map(rows.where, parts) if place is not None]
    return rows.take(rows.k, places, parts[0].of), rows.take(rows.v, places, parts[0].of)
