"""What is novel: the decisions of stores, taken from the keys of the pass that becomes history.

At a commit all held units and all candidates of all stores are compared at once: one matrix of similarities for every
head with state, and one copy to the host for all of them together. Everything after that is plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import HeadforceError
from ...policy import FrameSet
from ...policy.ops.episodic import Episodic
from ..lane import Lane
from ..plan import Cell
from ..pool import PagePool
from ..stream import Stream
from .turning import Turning

Novel = Callable[[str, tuple[FrameSet, ...], FrameSet], tuple[bool, FrameSet]]
"""See `Decide.novel`."""

Similarity = dict[tuple[int, int], float]
"""(frame, frame) -> cosine similarity of their keys in one head, from -1 to 1; the lower frame first."""


def novelty(pool: PagePool, turning: Turning) -> Callable[[Lane], Novel]:
    """What is novel at the next commit of the pool's stream, see `Decide.novel`; to be made anew for every commit.

    Frames are compared by the cosine of their raw keys: all tokens of a frame in one head as one vector, in float32.
    The similarity of two units is the mean over all pairs of a frame of the one and a frame of the other. A candidate
    is novel if its largest similarity to a held unit is below the threshold of the store, or if none is held. What
    `least_novel` gives up is the held unit whose largest similarity to another held unit or to the candidate is the
    largest; of several, the oldest.

    Args:
        pool: pages with the keys of the last pass, each turned by its own frame. turning: how. Without known RoPE keys
            are compared as they are stored.

    Nothing is computed before the stream asks. Raises HF-DECISION for a store that is not `episodic`.
    """
    similarities: dict[Cell, Similarity] = {}

    def of_lane(lane: Lane) -> Novel:
        def novel(store: str, held: tuple[FrameSet, ...], candidate: FrameSet) -> tuple[bool, FrameSet]:
            if not held:
                return True, FrameSet()
            if not similarities:
                similarities.update(_similarities(pool, turning))
            similarity = similarities[lane.first]
            nearest = max(_between(similarity, unit, candidate) for unit in held)
            return nearest < _threshold(lane, store), _least_novel(similarity, held, candidate)

        return novel

    return of_lane


def _threshold(lane: Lane, store: str) -> float:
    op = next(term.op for term in lane.rule.rule.stateful if term.store == store)
    if not isinstance(op, Episodic):
        raise HeadforceError("HF-DECISION", found=f"the store {op}", needed="an episodic store, or another decider")
    return op.write.threshold


def _between(similarity: Similarity, a: FrameSet, b: FrameSet) -> float:
    # Exact sums, so that two units are as similar as the other way round, and equals are equal.
    return math.fsum(similarity[min(f, g), max(f, g)] for f in a for g in b) / (len(a) * len(b))


def _least_novel(similarity: Similarity, held: Sequence[FrameSet], candidate: FrameSet) -> FrameSet:
    def redundancy(unit: FrameSet) -> float:
        return max(_between(similarity, unit, other) for other in (*held, candidate) if other != unit)

    return max(held, key=redundancy)  # the first of equals, and units are held oldest first


def _similarities(pool: PagePool, turning: Turning) -> dict[Cell, Similarity]:
    """The similarities of each head with state."""
    assert pool.regions is not None
    lanes = [lane for lane in pool.stream.lanes if any(not term.op.paged for term in lane.rule.rule.stateful)]
    frames = [_compared(pool.stream, lane) for lane in lanes]
    pages = [
        int(pool.regions.base[lane.first]) + lane.slots.slot[frame]
        for lane, its_frames in zip(lanes, frames, strict=True)
        for frame in its_frames
    ]
    times = [frame for its_frames in frames for frame in its_frames]
    device, counts = pool.k.device, [len(its_frames) for its_frames in frames]
    # Nothing waits for these copies; what comes back below is the one time that the host waits for the device.
    places = torch.tensor([pages, times]).to(device, non_blocking=True)
    matrices = [
        _cosines(pool.k.index_select(0, page), time, turning).flatten()
        for page, time in zip(*(row.split(counts) for row in places), strict=True)
    ]
    numbers = iter(torch.cat(matrices).tolist())
    return {
        lane.first: {(f, g): next(numbers) for f in its_frames for g in its_frames}
        for lane, its_frames in zip(lanes, frames, strict=True)
    }


def _compared(stream: Stream, lane: Lane) -> list[int]:
    """The frames of a lane that a store holds or may be offered at the next commit."""
    chunk = stream.chunk
    assert chunk is not None
    held = lane.slots.held
    if chunk.start < stream.history:
        return list(held)  # after a rewrite the stores go on from where they were at the end of the history
    return list(held & (lane.rule.rule.weighed(chunk, lane.held) | FrameSet.interval(chunk.start, chunk.stop)))


def _cosines(keys: Tensor, frames: Tensor, turning: Turning) -> Tensor:
    """[n, n]: the cosine similarities of n pages [n, T, D] whose keys were turned by `frames` [n]."""
    # Only time is turned back: at one place in the frame the spatial rotation of any two keys is the same, and a
    # rotation of both leaves their inner product as it is.
    unit = F.normalize(turning.moved(keys, -frames).flatten(1), dim=1)
    return unit @ unit.mT
