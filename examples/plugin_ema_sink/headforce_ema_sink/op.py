"""`ema_sink(size, decay, source)`: the first frames, into which everything that leaves the window is blended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import sympy

from headforce.errors import HeadforceError
from headforce.policy import Chunk, Commit, Decide, FrameSet, Mixture, PagedStore, Part, Write, policy_op
from headforce.policy.ops.episodic import Evicted


@policy_op("ema_sink")
@dataclass(frozen=True)
class EmaSink(PagedStore):
    """`size` frames of keys and values that change in place (Reward Forcing, arXiv 2512.04678).

    The frames that another operator lets go of are dealt out to `size` places in turn, frame f to place f mod `size`.
    The first frame of a place is kept as it is. Each later one is blended in, keys as they were before RoPE:
    sink = decay * sink + (1 - decay) * frame. A place stands at its first frame. What was blended in stays, also where
    a frame is made anew.

    Reward Forcing is `(ema_sink(3, source=evicted(recent)) | span(6) as recent)@contiguous` with chunks of 3 frames.
    Its code overwrites the front of the sink when another number of frames than `size` leaves at once (the last chunk
    of another length); here each frame is blended.

    >>> EmaSink(3).weights(3)
    (0.998001, 0.000999, 0.001)
    """

    size: int
    decay: float = 0.999
    source: Evicted = field(default=Evicted("recent"), metadata={"always": True})

    nested: ClassVar[dict[str, type]] = {"evicted": Evicted}
    scope = "every"  # what is blended in is a matter of frame numbers alone

    def __post_init__(self) -> None:
        self.need_count("size")
        if type(self.decay) is not float or not 0 < self.decay < 1:
            raise HeadforceError("HF-OP-ARG", found=f"decay={self.decay!r} in ema_sink()", needed="between 0 and 1")
        if not isinstance(self.source, Evicted):
            raise HeadforceError("HF-OP-ARG", found=f"source={self.source!r} in ema_sink()", needed="evicted(NAME)")

    def weights(self, frames: int) -> tuple[float, ...]:
        """The share of each of so many frames in their place, oldest first."""
        first, *later = (self.decay**age for age in reversed(range(frames)))
        return tuple(round(share, 12) for share in (first, *((1 - self.decay) * share for share in later)))

    @property
    def slots(self) -> int:  # type: ignore[override]
        return 1  # a unit is all that was blended

    @property
    def evict(self) -> str:  # type: ignore[override]
        return "fifo"

    @property
    def feeds_from(self) -> str:  # type: ignore[override]
        return self.source.store

    @property
    def pages(self) -> int:
        return self.size

    @property
    def most_parts(self) -> int:
        return self.size

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        return (arrived,) if arrived else ()

    def offered(
        self, store: str, held: tuple[FrameSet, ...], arrived: FrameSet, decide: Decide, when: Commit
    ) -> tuple[Write, ...]:
        before = held[0] if held else FrameSet()
        return (Write(before | arrived, before),) if arrived else ()

    def parts(self, held: FrameSet) -> tuple[Part, ...]:
        places: dict[int, list[int]] = {}
        for frame in held:
            places.setdefault(frame % self.size, []).append(frame)
        return tuple(Part(frames[0], tuple(frames), 0, 1, place) for place, frames in sorted(places.items()))

    def sources(self, part: Part, had: Sequence[Part]) -> tuple[int, ...]:
        """The frames that are blended into what the place holds already."""
        known = [old.frames for old in had if part.frames[: len(old.frames)] == old.frames]
        return part.frames[len(max(known, key=len, default=())) :]

    def materialize_part(self, part: Part, height: int, width: int) -> list[Mixture]:
        shares = self.weights(len(part.frames))
        return [
            Mixture(token, {(frame, token): share for frame, share in zip(part.frames, shares, strict=True)})
            for token in range(height * width)
        ]

    def before(self, held: FrameSet, frame: int) -> FrameSet:
        """Places into which nothing was blended that comes after `frame`: a blend cannot be undone."""
        return FrameSet.of(f for part in self.parts(held) if part.frames[-1] < frame for f in part.frames)

    def live(self, chunk: Chunk) -> FrameSet:
        return FrameSet()

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.S.Zero
