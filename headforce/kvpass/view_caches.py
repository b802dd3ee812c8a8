"""The caches of a stream that the model keeps itself, while a policy chooses what attention reads of them.

Which frames lie in the rows that the model reads follows from what its site shows: rows in front of a sink stand for
the first frames, all others are so many rows behind their place as have been evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import HeadforceError
from ..lowering.clock import Clock, Event
from ..lowering.plan import ChunkPlan
from ..policy import Chunk, FrameSet
from ..policy.switch import KEEP_ALL
from .capture import LayerCache
from .layers import VIEW, Caches, Layer, PassFacts, RopeTables, viewed
from .site import Site
from .torch_private import storage_key
from .view_plans import ViewPlans

if TYPE_CHECKING:
    from .session import Session


class ViewCaches(Caches):
    """The K caches of all layers of one stream, watched.

    Args:
        plans: what the policy makes of this model.
        keys: the K caches; empty where the past has no tensor of its own (`cat`), and then nothing is kept from pass
            to pass.
        session, caches: for a prepared model, the session and the model's caches.
    """

    variant = VIEW

    def __init__(
        self,
        plans: ViewPlans,
        keys: Sequence[Tensor],
        session: Session | None = None,
        caches: Sequence[LayerCache] = (),
    ) -> None:
        self.plans = plans
        self.session = session
        self.caches = list(caches)
        self.layers = [Layer(self, i) for i in range(plans.layers)]
        self._clock = Clock()
        self._tables: list[tuple[Tensor, Tensor]] = [()] * plans.layers  # type: ignore[list-item]
        self._keys = [storage_key(key) for key in keys]
        self._plan: ChunkPlan | None = None
        self._lies: tuple[tuple[int, ...], int] = ((), 1)
        for key, other in ((a, b) for a in self._keys for b in (*viewed, *self._keys)):
            if key.overlaps(other):
                raise HeadforceError(
                    "HF-ADOPT", found="a cache that overlaps another layer's", needed="memory of its own for each layer"
                )
        viewed.update(zip(self._keys, self.layers, strict=True) if self._keys else ())
        for cache in self.caches:
            cache.replace(*cache.tensors())

    def enter(self, layer: Layer, facts: PassFacts, site: Site, rope: RopeTables) -> None:
        facts = self.counted(facts)
        evicted = layer.rows_evicted(facts)
        if facts.start == 0 and self._begins(facts):
            self.forget_rotation()
        self.see_rotation(layer, rope, facts.start)
        chunk = self._chunk(facts)
        held = self._held(layer, facts, evicted)
        plan, tables = self.plans.at(chunk, held, facts, site.heads)
        self.check_remap(plan)
        self._plan, self._lies = plan, ((*held, *chunk.queries), facts.rows)
        self._tables[layer.number] = tuple(table[layer.number] for table in tables)  # type: ignore[assignment]
        layer.ran(facts, evicted)

    def _begins(self, facts: PassFacts) -> bool:
        """Whether a pass is the first of a video. Its first layer sees that; for the others it is a repeat."""
        clock = self._clock
        return clock.chunk is None or clock.step(facts.start, facts.frames, facts.lead)[0] is Event.RESET

    @property
    def plan(self) -> ChunkPlan | None:
        return self._plan

    def tables(self, layer: Layer) -> tuple[Tensor, ...]:
        return self._tables[layer.number]

    def frames_at(self, layer: Layer, batch: int, head: int, row: int, rows: int) -> str:
        frames, of_frame = self._lies
        return f"frames {FrameSet.of(frames[row // of_frame : -(-(row + rows) // of_frame)])}"

    def inputs(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Theta, then (reads, runs) of each layer."""
        return [
            self.theta(self.plans.policy.moves),
            *(table for layer in layers for table in self.tables(layer)),
        ]

    def see_reset(self) -> None:
        if self.caches and self.caches[0].is_empty():
            self.begin_anew()
            self.origin = 0

    def begin_anew(self) -> None:
        self._clock = Clock()
        for layer in self.layers:
            layer.evicted = 0

    def prompt_changed(self, facts: PassFacts) -> None:
        self.check_answers()
        if self._clock.chunk is not None:
            self._clock = self._clock.close(max(0, self._clock.end - facts.start))

    def check_answers(self) -> None:
        """HF-VIEW for a policy that does something when the prompt switches: the memory is the model's own."""
        if any(answer != KEEP_ALL for answer in self.plans.policy.on_switch.values()):
            raise HeadforceError(
                "HF-VIEW", found="a prompt switch that the policy answers, in view mode", needed="owned mode"
            )

    def lose_sight(self, layer: Layer) -> None:
        """A pass of this layer ran without us: what it evicted and which chunk it was is not known."""
        layer.evicted = None

    @property
    def chunk(self) -> Chunk | None:
        return self._clock.chunk

    @property
    def again(self) -> bool:
        return self._clock.chunk is not None and self._clock.history > self._clock.chunk.start

    @property
    def in_use(self) -> bool:
        if self.caches:
            return any(cache.in_use for cache in self.caches)
        return not all(key.expired for key in self._keys)

    def release(self) -> None:
        for key in self._keys:
            viewed.pop(key, None)
        for cache in self.caches:
            cache.give_back(*cache.tensors())

    def _chunk(self, facts: PassFacts) -> Chunk:
        """The running chunk. Only a warm-up asks how many there were before it, and only the clock knows."""
        warmup = self.plans.policy.warmup
        if not self._keys:
            if warmup is not None:
                raise HeadforceError(
                    "HF-VIEW", found="a warm-up over a past that is joined by cat", needed="a policy without warm-up"
                )
            return Chunk(0, facts.start, facts.frames, facts.lead)
        unseen = self._clock.chunk is None or any(layer.evicted is None for layer in self.layers)
        if unseen and facts.start > self._clock.end:
            if warmup is not None and self._index < warmup.chunks:
                raise HeadforceError(
                    "HF-CLOCK",
                    found=f"a pass at frame {facts.start} after {self._clock.end} frames that were seen",
                    needed="every chunk of the warm-up compiled by headforce",
                )
            chunk = Chunk(self._index + 1, facts.start, facts.frames, facts.lead)
            self._clock = Clock(chunk, facts.start, (*self._clock.starts, facts.start))
        else:
            _, self._clock = self._clock.step(facts.start, facts.frames, facts.lead)
        assert self._clock.chunk is not None
        return self._clock.chunk

    @property
    def _index(self) -> int:
        return self._clock.chunk.index if self._clock.chunk is not None else 0

    def _held(self, layer: Layer, facts: PassFacts, evicted: int) -> FrameSet:
        """The past frames in the rows that the model reads."""
        sink = (facts.sink if facts.sink is not None else layer.sink) if evicted else 0
        if sink is None:
            raise HeadforceError(
                "HF-CLOCK",
                site=f"layer {layer.number}",
                found=f"a cache that has evicted {evicted} rows before headforce saw it",
                needed="a stream that is compiled from its first eviction on, so that its sink is seen",
            )
        rows, held = facts.rows, FrameSet()
        for first, stop in facts.segments:
            parts = ((first, min(stop, sink), 0), (max(first, sink), min(stop, facts.first_row), evicted))
            for a, b, moved in parts:
                if a >= b:
                    continue
                if (a + moved) % rows or (b + moved) % rows:
                    raise HeadforceError(
                        "HF-FRAME",
                        site=f"layer {layer.number}",
                        found=f"attention over rows {a} to {b - 1}, with {rows} tokens in a frame",
                        needed="whole frames",
                    )
                held |= FrameSet.interval((a + moved) // rows, (b + moved) // rows)
        if (len(held) + facts.frames) * rows != facts.read_rows:
            raise HeadforceError(
                "HF-CACHE-RANGE",
                site=f"layer {layer.number}",
                found=f"attention over {facts.read_rows} rows, for frames {held} and a chunk of {facts.frames}",
                needed=f"{rows} rows for each of these frames, and no others",
            )
        self._check_keys(layer, facts, held)
        return held

    def _check_keys(self, layer: Layer, facts: PassFacts, held: FrameSet) -> None:
        """Keys that are rotated when they are read must stand at their own frames."""
        first = min([*held, facts.start])
        gaps = len(held) != facts.start - first
        if facts.key_start is not None and (facts.key_start != first or gaps):
            raise HeadforceError(
                "HF-CLOCK",
                site=f"layer {layer.number}",
                found=f"keys of frames {held} that are rotated from frame {facts.key_start} on",
                needed="every key rotated at its own frame",
            )
