"""The caches of a stream that headforce owns: the shells the model holds, and the pools that K and V live in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.plan import ChunkPlan
from ..lowering.pool import PagePool, PageShape
from ..lowering.state.decider import decider
from ..lowering.state.making import make_parts
from ..lowering.state.select import check_selections
from ..lowering.stream import Decider, Event, Stream
from ..lowering.verify import Contents, check_plan, check_tables, write_plan
from ..policy import Answer, Chunk, FrameSet, Rule
from .capture import Change, LayerCache
from .head_classes import HeadClasses
from .kept_queries import KeptQueries
from .layers import OBSERVED, Caches, Layer, PassFacts, RopeTables, owned
from .shell import make_shell
from .site import PREFILL, Site

if TYPE_CHECKING:
    from .session import Session


class OwnedCaches(Caches):
    """The caches of all layers of one stream, adopted.

    Args:
        session: the prepared model; its policy is bound when the first pass shows the model's shapes.
        caches: the model's caches, which must be empty; their tensors are replaced by shells.
    """

    def __init__(self, session: Session, caches: Sequence[LayerCache]) -> None:
        if any(cache.is_empty() is False for cache in caches):
            raise HeadforceError(
                "HF-ADOPT", found="a cache that already holds a part of a video", needed="an empty cache"
            )
        self.session = session
        self.variant = session.variant
        self.caches = list(caches)
        self.shells = [tuple(make_shell(t.shape, t.dtype, t.device) for t in cache.tensors()) for cache in self.caches]
        self.layers = [Layer(self, i) for i in range(len(caches))]
        self.stream: Stream | None = None
        self.pool: PagePool | None = None
        self.heads: HeadClasses | None = None
        self.queries = KeptQueries(len(caches)) if self.variant == OBSERVED else None
        self.contents = Contents() if session.verify.whole else None
        self._checked: ChunkPlan | None = None
        self._switched_at: int | None = None
        for cache, (k, v), layer in zip(self.caches, self.shells, self.layers, strict=True):
            cache.replace(k, v)
            for shell in (k, v):
                owned[shell.device, shell.untyped_storage().data_ptr()] = layer

    @property
    def held_bytes(self) -> int:
        return self.pool.nbytes if self.pool is not None else 0

    @property
    def chunk(self) -> Chunk | None:
        return self.stream.chunk if self.stream is not None else None

    @property
    def again(self) -> bool:
        return self.chunk is not None and self.stream is not None and self.stream.history > self.chunk.start

    def unseen(self) -> None:
        if self.contents is not None and self.chunk is not None:
            self.contents.unseen(self.chunk.queries)

    @property
    def in_use(self) -> bool:
        pairs = zip(self.caches, self.shells, strict=True)
        # A cache that was given other tensors is no part of this stream any more.
        return any(cache.in_use and cache.tensors()[0] is shells[0] for cache, shells in pairs)

    def release(self) -> None:
        """Gives up pools and registration, and puts ordinary empty tensors back into the model's caches.

        Where these do not fit, the caches get tensors without rows, which the model cannot use unseen, and the error
        comes when everything is released.
        """
        self.stream = self.pool = None  # first: what comes back is larger
        failed: RuntimeError | None = None
        for cache, shells in zip(self.caches, self.shells, strict=True):
            for shell in shells:
                owned.pop((shell.device, shell.untyped_storage().data_ptr()), None)
            if cache.tensors()[0] is shells[0]:
                # Nobody sees what a cache holds that is not in use, and whole ones may not fit beside another stream's.
                whole = cache.in_use and failed is None
                try:
                    cache.give_back(*(_zeros(shell, whole) for shell in shells))
                except RuntimeError as error:
                    failed = error
                    cache.give_back(*(_zeros(shell, whole=False) for shell in shells))
        if failed is not None:
            raise failed

    def see_reset(self) -> None:
        if self.running and self.caches[0].is_empty():
            self.begin_anew()
            self.origin = 0

    def _begins_anew(self, facts: PassFacts) -> bool:
        """Whether a pass is the first of another video. Its first layer sees that; for the others it is a repeat."""
        stream = self.stream
        return stream is not None and stream.history > 0 and stream.check_pass(facts.start, facts.frames) is Event.RESET

    def _begin_video(self, native: Rule) -> None:
        """The first layer of a video: what was learned from the model in the one before may have changed."""
        self.forget_rotation()
        if self.heads is not None and self.stream is not None and self.stream.chunk is not None:
            self.begin_anew()
        if self.stream is not None and self.stream.policy.native != native:
            self.stream = self.pool = self.heads = None

    def begin_anew(self) -> None:
        self._switched_at = None
        for layer in self.layers:
            layer.evicted = 0
        if self.heads is not None:  # the next video's heads are classified by themselves
            self.stream = self.pool = self.heads = None
        elif self.stream is not None:
            self.stream.reset()

    @property
    def running(self) -> bool:
        """Whether a video has begun and has not been reset."""
        return self.stream is not None and self.stream.chunk is not None

    def prompt_changed(self, facts: PassFacts) -> None:
        """A switch by the model's own pipeline. The frames that the pass writes are those that are run again.

        Pipelines empty the text caches again behind such a pass: a place in the stream has one switch.
        """
        stream = self.stream
        if stream is not None and stream.chunk is not None and stream.end != self._switched_at:
            self.switch(None, stream.end - facts.start if facts.start < stream.end else None)

    def switch(self, answer: Answer | None, again: int | None = None) -> int:
        """The prompt switches, see `Session.switch`; the frames that have to be run again, `again` if that is known."""
        if self.stream is None or self.pool is None or self.rotation is None:
            raise HeadforceError("HF-CLOCK", found="a prompt switch before the first pass", needed="one between chunks")
        policy = self.session.policy
        if self.heads is not None and self.heads.classes is None and answer is None and not policy.answers_alike:
            raise HeadforceError(
                "HF-CLASSIFY",
                found="a prompt switch before the heads are classified, and classes that do not answer alike",
                needed="one once a chunk behind the measured one has begun, or one answer for all: switch('keep()')",
            )
        owed = self.stream.switch(self._decider(), answer, again)
        self._switched_at = self.stream.end
        return owed

    def saved(self) -> Callable[[], None]:
        """A function that takes back the switches from here to its call, if no pass has begun since."""
        assert self.stream is not None
        take_back, switched_at = self.stream.saved(), self._switched_at

        def taken_back() -> None:
            take_back()
            self._switched_at = switched_at

        return taken_back

    def _decider(self) -> Decider:
        assert self.pool is not None
        assert self.rotation is not None
        return decider(self.pool, self.rotation, self.queries.kept if self.queries is not None else None)

    def enter(self, layer: Layer, facts: PassFacts, site: Site, rope: RopeTables) -> None:
        """A layer's site runs: checks the clock, and lets the stream advance if this is the first layer to do so."""
        anew = self.change is Change.ANEW
        facts = self.counted(facts)
        evicted = layer.rows_evicted(facts)
        width, share = (site.head_dim, site.value_dim), site.heads // site.kv_heads
        shape = PageShape(facts.batch, facts.rows, *width, site.cache.dtype, facts.device, share)
        native = self.session.native(facts.cache_rows, facts.rows)
        if facts.start == 0 and (not self.running or self._begins_anew(facts)):
            self._begin_video(native)
        self.see_rotation(layer, rope, facts.start)
        if self.stream is None:
            self._bind(site.heads, shape, native)
        self._check_alike(layer, site, shape, native)
        plan = self._advance(facts, site, anew)
        if site.cache.kind == PREFILL:
            _check_prefill(layer, plan)
        if layer.checked is not plan:
            self._check_native(layer, facts, native)
        if self._checked is not plan:
            # Not "if the pass is new": a pass that was refused here comes as a repeat when it is tried again.
            self._lay_out(plan, native)
        self._checked = layer.checked = plan
        layer.ran(facts, evicted)

    def _bind(self, heads: int, shape: PageShape, native: Rule) -> None:
        """The first site shows what the policy is for."""
        policy = self.session.policy
        of_model = {"layers": len(self.layers), "heads": heads, "tokens": shape.rows}
        if shape.share > 1 and self.queries is not None:
            raise HeadforceError(
                "HF-OWNED",
                found=f"a policy that decides from queries, and {shape.share} query heads for each K/V head",
                needed="a query head for each K/V head, or a policy that decides from keys",
            )
        if policy.classify is not None:
            policy.classify.count(of_model["layers"] * of_model["heads"])
            assert self.queries is not None
            self.heads = HeadClasses(policy, self.queries, of_model, native)
            policy = policy.undecided()
        bound = policy.bind(**of_model, native=native)
        if shape.share > 1:
            bound = bound.shared(shape.share)
        check_selections(bound)
        stream = Stream(bound, shape.batch)
        self.pool = PagePool(stream, shape, canonical=self.session.canonical)
        self.stream = stream

    def _advance(self, facts: PassFacts, site: Site, anew: bool) -> ChunkPlan:
        """The plan of the running pass. Its first layer lets the stream go on; for the others it is a repeat."""
        assert self.stream is not None
        assert self.pool is not None
        assert self.rotation is not None
        if self.heads is not None:
            self.heads.before(facts, self.pool, self.rotation)
        self.stream.begin(facts.start, facts.frames, self._decider(), lead=facts.lead, again=anew)
        if anew:
            self._switched_at = self.stream.end
        if self.heads is not None:
            self.heads.begun(facts, site, self.stream)
        elif self.queries is not None:
            written = torch.arange(facts.written.start, facts.written.stop)
            self.queries.want(written, facts, site, mean=True)
        assert self.stream.plan is not None
        return self.stream.plan

    def _lay_out(self, plan: ChunkPlan, native: Rule) -> None:
        """Makes the parts that the pass reads, and the pages and tables it runs with."""
        assert self.stream is not None
        assert self.pool is not None
        assert self.rotation is not None
        self.check_remap(plan, raw=any(rule.rule.stateful for rule in self.stream.policy.distinct))
        make_parts(self.pool, self.rotation)
        self.pool.update()
        if self.session.verify.plans:
            self._check_plan(native)

    @property
    def plan(self) -> ChunkPlan | None:
        return self.stream.plan if self.stream is not None else None

    def tables(self, layer: Layer) -> tuple[Tensor, ...]:
        assert self.pool is not None
        return self.pool.reads[layer.number], self.pool.runs[layer.number], self.pool.pages[layer.number]

    def frames_at(self, layer: Layer, batch: int, head: int, row: int, rows: int) -> str:
        assert self.pool is not None
        return self.pool.frames_at((layer.number, batch, head // self.pool.shape.share), row, rows)

    def inputs(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Pools and theta, then (reads, runs, pages) of each layer; and what an observed graph takes besides."""
        assert self.pool is not None
        added = [self.pool.k, self.pool.v, self.theta(self._moves())]
        if self.queries is not None:
            added.append(self.queries.rows)
        for layer in layers:
            added += self.tables(layer)
            if self.queries is not None:
                added.append(self.queries.kept[layer.number])
        return added

    def _moves(self) -> bool:
        """Whether some key may have to be turned; `switch` can bring that about whatever the policy says."""
        assert self.stream is not None
        return self.session.policy.moves or any(amended.cuts for amended in self.stream.amended.values())

    def _check_plan(self, native: Rule) -> None:
        assert self.stream is not None
        assert self.stream.plan is not None
        assert self.pool is not None
        try:
            check_plan(self.stream)
            check_tables(self.pool)
        except HeadforceError as error:
            policy, tables = self.stream.policy, {"reads": self.pool.reads, "runs": self.pool.runs}
            bound = {"layers": policy.layers, "heads": policy.heads, "batch": self.stream.batch}
            bound |= {"tokens": self.pool.shape.rows, "native": str(native)}
            folder = self.session.verify.folder
            raise write_plan(folder, error, self.session.policy, self.stream.plan, tables, **bound) from None

    def _check_alike(self, layer: Layer, site: Site, shape: PageShape, native: Rule) -> None:
        """HF-SHAPE, or HF-NATIVE, for a layer that is not like the one for which the policy was bound."""
        assert self.stream is not None
        assert self.pool is not None
        policy = self.stream.policy
        if site.kv_heads != policy.heads:
            raise HeadforceError(
                "HF-SHAPE",
                site=f"layer {layer.number}",
                found=f"{site.kv_heads} heads",
                needed=f"{policy.heads}, as in the layer that ran first",
            )
        if native != policy.native and policy.reads_native:
            raise HeadforceError(
                "HF-NATIVE",
                site=f"layer {layer.number}",
                found=f"a model that reads {native}, and {policy.native} in another layer or earlier in this video",
                needed="one rule for all layers of a video, or a policy without native()",
            )
        if shape != self.pool.shape:
            raise HeadforceError(
                "HF-SHAPE", found=f"pages of {shape}", needed=f"the shape this stream began with, {self.pool.shape}"
            )

    def _check_native(self, layer: Layer, facts: PassFacts, native: Rule) -> None:
        """The adapter's rule for the unmodified model against what the graph shows of it, if the policy asks for it."""
        assert self.stream is not None
        if not self.stream.policy.reads_native:
            return
        chunk = self.stream.chunk
        assert chunk is not None
        expected = (len(native.frames(chunk, chunk.start)) + chunk.frames) * facts.rows
        sink = next((term.op.size for term in native.terms if term.op.name == "sink"), 0)  # type: ignore[attr-defined]
        if facts.read_rows != expected or (facts.sink is not None and facts.sink != sink * facts.rows):
            raise HeadforceError(
                "HF-NATIVE",
                site=f"layer {layer.number}",
                found=f"a model that reads {facts.read_rows} rows at frame {chunk.start}"
                + (f" and keeps {facts.sink} rows in front" if facts.sink is not None else ""),
                needed=f"{expected} rows, which is what its adapter's rule {native} says",
            )


def _zeros(shell: Tensor, whole: bool) -> Tensor:
    with torch.inference_mode(False):  # whoever restores inside it may go on outside
        return torch.zeros(shell.shape if whole else (0,), dtype=shell.dtype, device=shell.device)


def _check_prefill(layer: Layer, plan: ChunkPlan) -> None:
    """HF-CACHE-FORM for a pass that attends to its own rows alone where heads of the layer read others."""
    read = FrameSet.of(
        int(frame)
        for number in np.unique(plan.which[layer.number])
        for reading in plan.heads[number].readings
        for frame in reading.frames[:, 0]
    )
    if read:
        raise HeadforceError(
            "HF-CACHE-FORM",
            site=f"layer {layer.number}",
            found=f"a pass at frame {plan.chunk.start} that attends to its own rows alone, and a policy that reads "
            f"frames {read}",
            needed="a model that reads its cache in every pass but those at frame 0",
        )
