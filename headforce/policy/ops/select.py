"""`select(size, segments, score, source, pool, scope)`: the segments of frames that score best, chosen at commit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import sympy

from ...errors import HeadforceError
from ..chunk import Chunk
from ..frameset import EMPTY, FrameSet
from ..memory import Commit, Decide, PagedStore, Write
from ..op import is_name, policy_op
from ..parts import Mixture, Part
from .episodic import Evicted

TOKEN = "token"


@policy_op("select")
@dataclass(frozen=True)
class Select(PagedStore):
    """The best segments of the frames that another operator lets go of, `size` frames' worth of them.

    Every frame is cut into `segments` equal runs of tokens, or into single tokens. At each commit the segments that
    have arrived are scored, with `pool=all` those that are held as well, and the best are copied into pages of the
    store's own; they keep their positions. Nothing is selected at a commit of the warm-up. A segment that was chosen
    `reuse` times is no candidate any more.

    `score` names a registered score, see docs/policy.md. `scope` says which heads decide together: each `head` for
    itself, the heads of a `layer` that have the rule, or those of the first such layer for the whole `model`
    (Forcing-KV's dynamic heads, arXiv 2605.09681; Deep Forcing's tokens, 2512.05081).
    """

    size: int
    segments: int | str = field(default=6, metadata={"words": (TOKEN,), "always": True})
    score: str = field(default="segment_cosine", metadata={"words": ("segment_cosine", "mean_key_cosine", "qk")})
    source: Evicted = field(default=Evicted("recent"), metadata={"always": True})
    pool: str = field(default="new", metadata={"words": ("new", "all")})
    scope: str = field(default="head", metadata={"words": ("head", "layer", "model")})
    reuse: int | None = None

    nested: ClassVar[dict[str, type]] = {"evicted": Evicted}

    def __post_init__(self) -> None:
        self.need_count("size")
        if self.segments != TOKEN and (type(self.segments) is not int or self.segments < 1):
            raise HeadforceError(
                "HF-OP-ARG",
                found=f"segments={self.segments!r} in select()",
                needed=f"a whole number of at least 1, or {TOKEN}",
            )
        if not is_name(self.score):
            raise HeadforceError("HF-OP-ARG", found=f"score={self.score!r} in select()", needed="the name of a score")
        if not isinstance(self.source, Evicted):
            raise HeadforceError("HF-OP-ARG", found=f"source={self.source!r} in select()", needed="evicted(NAME)")
        self.need_word("pool", "scope")
        if self.reuse is not None:
            self.need_count("reuse")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return 1  # a unit is a whole selection

    @property
    def evict(self) -> str:  # type: ignore[override]
        return "fifo"

    @property
    def pages(self) -> int:
        return self.size

    @property
    def feeds_from(self) -> str:  # type: ignore[override]
        return self.source.store

    @property
    def per_frame(self) -> int:
        """Segments of a frame; HF-SEGMENTS for tokens as long as nobody has said how many there are."""
        if isinstance(self.segments, str):
            raise HeadforceError(
                "HF-SEGMENTS", found=f"{self} before a model was seen", needed="the number of tokens of a frame"
            )
        return self.segments

    @property
    def most_parts(self) -> int:
        return self.size * self.per_frame

    def parts_of_frame(self, tokens: int) -> int:
        return tokens if isinstance(self.segments, str) else self.segments

    def resolved(self, tokens: int) -> Select:
        if self.segments == TOKEN:
            return replace(self, segments=tokens)
        self.need_division(tokens, self.per_frame)
        return self

    def units(self, arrived: FrameSet) -> tuple[FrameSet, ...]:
        """The segments of all frames that arrived, as frame * segments + segment, in one unit."""
        n = self.per_frame
        segments = EMPTY
        for start, stop in arrived.intervals():
            segments |= FrameSet.interval(start * n, stop * n)
        return (segments,) if segments else ()

    def offered(
        self, store: str, held: tuple[FrameSet, ...], arrived: FrameSet, decide: Decide, when: Commit
    ) -> tuple[Write, ...]:
        if not when.ruling or not arrived:
            return ()
        (candidates,) = self.units(arrived)
        if self.pool == "all" and held:
            candidates |= held[0] - when.often
        chosen = decide.choose(store, candidates, self.size * self.per_frame)
        return (Write(chosen, held[0] if held else EMPTY),)

    def parts(self, held: FrameSet) -> tuple[Part, ...]:
        return _segments(self.per_frame, held)

    def materialize_part(self, part: Part, height: int, width: int) -> list[Mixture]:
        rows = height * width // part.of
        tokens = range(part.index * rows, (part.index + 1) * rows)
        return [Mixture(token, {(part.at, token): 1.0}) for token in tokens]

    def before(self, held: FrameSet, frame: int) -> FrameSet:
        return held.below(frame * self.per_frame)

    def live(self, chunk: Chunk) -> FrameSet:
        return EMPTY

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        return sympy.S.Zero


@lru_cache(maxsize=64)  # of tokens there are thousands, and a plan asks several times
def _segments(per_frame: int, held: FrameSet) -> tuple[Part, ...]:
    return tuple(Part(s // per_frame, (s // per_frame,), s % per_frame, per_frame, i) for i, s in enumerate(held))
