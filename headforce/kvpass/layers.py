"""Layers: whose cache a compiled graph was called with.

A graph serves every layer and every stream, so it asks on each call. `Caches` is one stream's; in owned mode its
tensors are shells (`owned`), in view mode they are the model's own (`viewed`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.state.select import asks_queries
from .capture import Change
from .torch_private import StorageKey, storage_key

if TYPE_CHECKING:
    from ..lowering.plan import ChunkPlan
    from ..lowering.state.turning import Turning
    from ..policy import Chunk, Policy
    from .capture import LayerCache
    from .session import Session
    from .site import Site

PLAIN, OWNED, OBSERVED, VIEW, PROBED = "plain", "owned", "observed", "view", "probed"
"""The variants of a graph: unchanged; with K and V in our pools; the same, with a sample of the queries kept; reading
the model's own cache; and unchanged, with attention measured next to it."""


def variant_of(mode: str, policy: Policy) -> str:
    """The variant that runs for a model prepared in `mode`."""
    return OBSERVED if mode == OWNED and (policy.classify is not None or asks_queries(policy)) else mode


@dataclass(frozen=True)
class PassFacts:
    """What one site shows of the running pass, all in numbers.

    Attributes:
        start, frames: the frames written, from RoPE. rows: tokens of a frame. batch: rows of the batch.
        lead: frames that the pass sends right in front of them and does not write.
        first_row: the first row written, counted as the model counts (rows of its cache).
        evicted: rows that this pass rolled out of the cache. sink: rows that the roll left in front, or None without
            a roll.
        segments: the rows [first, stop) that the model itself reads, in order; the last ends with the chunk.
        cache_rows: rows of the model's cache.
        key_start: the frame at which the model rotates the first key it reads; None where the cache holds rotated keys.
        device: of the cache.
    """

    start: int
    frames: int
    rows: int
    first_row: int
    cache_rows: int
    segments: tuple[tuple[int, int], ...]
    evicted: int = 0
    sink: int | None = None
    batch: int = 1
    key_start: int | None = None
    lead: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def read_rows(self) -> int:
        """Rows that the model itself reads, the chunk included."""
        return sum(stop - first for first, stop in self.segments)

    @property
    def written(self) -> range:
        """The query rows of the frames that are written."""
        return range(self.lead * self.rows, (self.lead + self.frames) * self.rows)

    def since(self, origin: int) -> PassFacts:
        """The same with frames counted from `origin`, as streams count them."""
        key_start = None if self.key_start is None else self.key_start - origin
        return replace(self, start=self.start - origin, key_start=key_start) if origin else self


class RopeTables(NamedTuple):
    """The RoPE tables that a site is called with, and what they say, which takes a wait for the device to find out."""

    tables: tuple[Tensor, ...]
    grid: tuple[int, ...] | None
    read: Callable[[], Turning]

    @property
    def seen(self) -> SeenTables:
        """What there was to look at."""
        return SeenTables(self.tables, self.grid, tuple(-1 if t.is_inference() else t._version for t in self.tables))


class SeenTables(NamedTuple):
    """Tables that were looked at, and what shows that they have changed since."""

    tables: tuple[Tensor, ...]
    grid: tuple[int, ...] | None
    versions: tuple[int, ...]

    def same(self, other: SeenTables) -> bool:
        """Whether they are the very tensors of `other` with what they held then, for frames of the same form."""
        kept = (self.grid, self.versions) == (other.grid, other.versions)
        return kept and len(self.tables) == len(other.tables) and all(map(is_, self.tables, other.tables))


@dataclass(eq=False)
class Layer:
    """One layer of one stream: how often its site ran, and how far its model's cache has rolled.

    `evicted` and `sink` count rows, as `PassFacts` does; `evicted` is None when passes went by unseen. `turns`: the
    RoPE tables of this video that were looked at. `checked`: the plan for which it was seen to read what it should.
    """

    caches: Caches
    number: int
    launches: int = 0
    evicted: int | None = 0
    sink: int | None = None
    turns: SeenTables | None = None
    checked: ChunkPlan | None = None

    def rows_evicted(self, facts: PassFacts) -> int:
        """The rows evicted since the stream began; HF-CLOCK unless cache and RoPE stand at one and the same frame."""
        before = facts.start * facts.rows - facts.first_row - facts.evicted if self.evicted is None else self.evicted
        evicted = 0 if facts.start == 0 else before + facts.evicted
        if evicted and before and self.sink is not None and facts.sink not in (None, self.sink):
            raise HeadforceError(
                "HF-CLOCK",
                site=f"layer {self.number}",
                found=f"a roll behind {facts.sink} rows of a cache that rolled behind {self.sink} rows before",
                needed="one sink for all evictions, whose rows are those of the first frames",
            )
        if facts.first_row + evicted != facts.start * facts.rows or evicted < 0:
            raise HeadforceError(
                "HF-CLOCK",
                site=f"layer {self.number}",
                found=f"a query at frame {facts.start} while the cache is written at row {facts.first_row}"
                f" after {evicted} evicted rows, which is frame {(facts.first_row + evicted) / facts.rows:g}",
                needed="one and the same frame",
            )
        return evicted

    def ran(self, facts: PassFacts, evicted: int) -> None:
        """The site is launched: from here on its pass counts."""
        self.evicted = evicted
        if facts.sink is not None:
            self.sink = facts.sink
        self.launches += 1


class Caches(ABC):
    """The caches of all layers of one stream.

    Attributes:
        variant: which variant of a graph runs with them. session: the prepared model they belong to, if one is.
        layers: one for each cache, in the order of the layers. caches: the model's own, if it is prepared.
        text_caches: those of cross-attention in the last call.
        change: what the running call says about the prompt, until its first site runs.
        origin: the frame that the model calls by this number is frame 0 of the stream.
        rotation: how keys turn, set when the first site of a video runs.
        turned_otherwise: a layer whose keys turn otherwise than those of that site, if there is one.
    """

    variant: str
    session: Session | None
    layers: list[Layer]
    caches: list[LayerCache]
    rotation: Turning | None = None
    turned_otherwise: int | None = None
    _turned_by: SeenTables = SeenTables((), None, ())
    text_caches: Sequence[Any] = ()
    change: Change | None = None
    origin: int = 0

    @abstractmethod
    def enter(self, layer: Layer, facts: PassFacts, site: Site, rope: RopeTables) -> None:
        """A layer's site is about to run: checks the clock and plans, unless an earlier layer of this pass has."""

    def forget_rotation(self) -> None:
        """Another video may be turned by other tables, or have frames of another form."""
        self.rotation = self.turned_otherwise = None
        for layer in self.layers:
            layer.turns = None

    def see_rotation(self, layer: Layer, rope: RopeTables, start: int) -> None:
        """Looks at the tables of a layer once in a video. In passes at frame 0 also whether they are still the same: a
        video of one chunk cannot be told from another pass of the chunk."""
        if layer.turns is not None and (start > 0 or layer.turns.same(rope.seen)):
            return
        if layer.turns is not None and self.rotation is not None:
            if self.rotation.same(rope.read()):
                layer.turns = rope.seen
                return
            self.forget_rotation()
        if self.rotation is None:
            self.rotation, self._turned_by = rope.read(), rope.seen
        elif not self._turned_by.same(rope.seen) and not self.rotation.same(rope.read()):
            self.turned_otherwise = layer.number
        layer.turns = rope.seen

    def counted(self, facts: PassFacts) -> PassFacts:
        """The facts with frames counted from the beginning of the stream, once a change of the prompt was acted on."""
        change, self.change = self.change, None
        if change is Change.ANEW and facts.start == 0:
            change = Change.PROMPT  # all frames so far run again
        if change is Change.ANEW:
            self.begin_anew()
            self.origin = facts.start
        elif facts.start == 0:
            self.origin = 0
        facts = facts.since(self.origin)
        if change is Change.PROMPT:
            self.prompt_changed(facts)
        return facts

    @abstractmethod
    def begin_anew(self) -> None:
        """Forgets the stream: what follows is another."""

    @abstractmethod
    def prompt_changed(self, facts: PassFacts) -> None:
        """The prompt has switched in front of the pass that begins."""

    @abstractmethod
    def see_reset(self) -> None:
        """Begins the stream anew when the model's own indices say that a new video begins."""

    @abstractmethod
    def release(self) -> None:
        """Ends all that headforce does with these caches, and gives the model back what was replaced."""

    @property
    def held_bytes(self) -> int:
        """Bytes of K and V that headforce holds for this stream."""
        return 0

    @property
    @abstractmethod
    def chunk(self) -> Chunk | None:
        """The chunk that is running, or ran last; None before the first, and where no clock is kept."""

    def unseen(self) -> None:  # noqa: B027  caches that remember nothing of passes have nothing to do
        """A pass runs that nobody checks."""

    @property
    @abstractmethod
    def again(self) -> bool:
        """Whether the running pass writes frames that are history already."""

    @property
    @abstractmethod
    def in_use(self) -> bool:
        """False when nobody else refers to any of these caches."""

    def check_remap(self, plan: ChunkPlan, raw: bool = False) -> None:
        """HF-ROPE if keys have to be turned and nobody knows by how much. `raw`: stores look at keys before RoPE."""
        assert self.rotation is not None
        turned = any(head.remaps for head in plan.heads)
        if self.turned_otherwise is not None and (turned or raw):
            raise HeadforceError(
                "HF-ROPE",
                site=f"layer {self.turned_otherwise}",
                found="keys that turn otherwise than those of the layer that runs first",
                needed="one RoPE table for all layers, or a policy that keeps positions and has no stores",
            )
        if turned and not self.rotation.theta.numel():
            raise HeadforceError(
                "HF-ROPE",
                found="a policy that moves frames to other positions, and a RoPE table made inside the graph",
                needed="a table or rates that are an input of the graph or made of constants, "
                "or a policy that keeps positions",
            )

    def theta(self, moves: bool) -> Tensor:
        """The rates at which keys turn; none where nothing moves a frame, as kernels then do without rotation."""
        assert self.rotation is not None
        return self.rotation.theta if moves else self.rotation.theta[:0]

    @property
    @abstractmethod
    def plan(self) -> ChunkPlan | None:
        """The plan of the newest chunk."""

    @abstractmethod
    def tables(self, layer: Layer) -> tuple[Tensor, ...]:
        """Reads and runs of a layer, and in owned mode the pages of its chunk."""

    @abstractmethod
    def frames_at(self, layer: Layer, batch: int, head: int, row: int, rows: int) -> str:
        """In words, what lies in rows [row, row + rows) of a run of this head."""

    @abstractmethod
    def inputs(self, layers: Sequence[Layer]) -> list[Tensor]:
        """What the lowered graph takes besides the model's own inputs, for sites of these layers."""


owned: dict[tuple[torch.device, int], Layer] = {}
"""Storage of a shell -> its layer. A shell's range is its own for as long as it lives, so the key is unique."""

viewed: dict[StorageKey, Layer] = {}
"""A K cache that the model keeps -> its layer. A key stays unique after its tensor is gone; see `storage_key`."""


def layer_of(tensor: Tensor) -> Layer | None:
    """The layer whose K cache `tensor` is; of a shell also any view of it."""
    layer = owned.get((tensor.device, tensor.untyped_storage().data_ptr()))
    return layer if layer is not None or not viewed else viewed.get(storage_key(tensor))
