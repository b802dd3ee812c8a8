"""Whether rules keep to what a model's own cache can hold, seen before the cache has evicted anything."""

from __future__ import annotations

from itertools import islice

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet
from ..policy.bound import LOOK_AHEAD


def check_reach(policy: BoundPolicy, first: Chunk, capacity: int) -> None:
    """HF-EVICTED if a rule will read frames that no cache of `capacity` frames, the chunk included, can still hold.

    A full cache holds its first k frames, for some k, and the newest ones. Which k it is shows when it evicts; here a
    rule is refused when no k would do. The chunks are those of a stream that goes on in the size of `first`.
    """
    sinks = set(range(max(0, capacity - first.frames) + 1))
    for rule in policy.distinct:
        for chunk in islice(policy.endless(rule, first.frames, first), LOOK_AHEAD):
            items = [item for query in chunk.queries for item in rule.read(chunk, query)]
            # What native() reads is held by its definition.
            needed = FrameSet.of(frame for item in items if item.kind != "native" for frame in item.frames)
            fits = {k for k in sinks if needed <= held(chunk, capacity, k)}
            if not fits:
                raise HeadforceError(
                    "HF-EVICTED",
                    site=f"rule {rule.at(chunk)}",
                    found=f"frames {needed} read at frame {chunk.start}",
                    needed=f"frames that a cache of {capacity} frames holds there, whatever its sink",
                )
            sinks = fits


def held(chunk: Chunk, capacity: int, sink: int) -> FrameSet:
    """The past frames that a cache of `capacity` frames holds while `chunk` runs, if it keeps its first `sink`."""
    newest = max(0, chunk.stop - (capacity - sink))
    return FrameSet.interval(0, min(sink, chunk.start)) | FrameSet.interval(min(newest, chunk.start), chunk.start)
