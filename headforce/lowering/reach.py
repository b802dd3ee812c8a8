"""Whether rules keep to what a model's own cache can hold, seen before the cache has evicted anything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet, HeadRule
from ..policy.bound import LOOK_AHEAD


def check_reach(policy: BoundPolicy, first: Chunk, capacity: int) -> None:
    """HF-EVICTED if a rule will read frames that no cache of `capacity` frames, the chunk included, can still hold.

    A full cache holds its first k frames, for some k, and the newest ones. Which k it is shows when it evicts, and how
    long later chunks are shows when they come; here a policy is refused when no k and no length up to that of `first`
    would do. What passes may still be refused later, when the frames are gone.
    """
    refusals = []
    for frames in range(1, first.frames + 1):
        refusal = _beyond(policy, Chunk(first.index, first.start, frames), capacity)
        if refusal is None:
            return
        refusals.append(refusal)
    raise refusals[-1]


def _beyond(policy: BoundPolicy, first: Chunk, capacity: int) -> HeadforceError | None:
    """The refusal of a stream that goes on in chunks of the size of `first`; None if some sink serves all of it."""
    sinks = set(range(max(0, capacity - first.frames) + 1))
    for rule in policy.distinct:
        for chunk in islice(_ahead(policy, rule, first, capacity), LOOK_AHEAD):
            if any(term.op.name == "native" for term in rule.at(chunk).terms):
                continue  # what the model itself will read shows later
            items = [item for query in chunk.queries for item in rule.read(chunk, query)]
            needed = FrameSet.of(frame for item in items for frame in item.frames)
            fits = {k for k in sinks if needed <= held(chunk, capacity, k)}
            if not fits:
                return HeadforceError(
                    "HF-EVICTED",
                    site=f"rule {rule.at(chunk)}",
                    found=f"frames {needed} read at frame {chunk.start}",
                    needed=f"frames that a cache of {capacity} frames holds there, whatever its sink",
                )
            sinks = fits
    return None


def _ahead(policy: BoundPolicy, rule: HeadRule, first: Chunk, capacity: int) -> Iterator[Chunk]:
    """Chunks until all that a rule reads has moved along, and then until it has left every sink behind."""
    chunk = first
    for chunk in policy.endless(rule, first.frames, first):
        yield chunk
    for _ in range(-(-capacity // first.frames) + rule.rule.repeats()):
        chunk = chunk.then(first.frames)
        if policy.policy.horizon is not None and chunk.stop > policy.policy.horizon:
            return
        yield chunk


def held(chunk: Chunk, capacity: int, sink: int) -> FrameSet:
    """The past frames that a cache of `capacity` frames holds while `chunk` runs, if it keeps its first `sink`."""
    newest = max(0, chunk.stop - (capacity - sink))
    return FrameSet.interval(0, min(sink, chunk.start)) | FrameSet.interval(min(newest, chunk.start), chunk.start)
