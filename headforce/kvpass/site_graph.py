"""A compiled graph with attention sites, and what happens when it is called.

The same graph may be called with caches that headforce owns and with caches that it does not: Dynamo shares graphs
between models of one class. Which variant of the graph runs is therefore decided on every call, by whose caches it was
given; a variant is compiled when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..errors import HeadforceError
from ..lowering.pool import PageShape
from . import torch_private
from .cache_set import LayerState, PassFacts, Rotation, layer_of
from .inner import compile_inner
from .lower_owned import lower_owned, rotated_pairs
from .options import Options
from .rope_rates import temporal_rates
from .site import Site, SiteReport

PLAIN, OWNED = "plain", "owned"


class SiteGraph:
    """One captured graph, its sites, and the variants that were compiled of it.

    Args:
        module: the graph, which nobody else changes. example_inputs: what Dynamo gave the backend with it.
        expected: the variant to compile now, while the compiler may still add guards.
    """

    def __init__(
        self,
        module: GraphModule,
        example_inputs: Sequence[Any],
        settings: Options,
        report: SiteReport,
        expected: str,
    ) -> None:
        self.report = report
        self.settings = settings
        self._module = module
        self._examples = list(example_inputs)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._readers = [_SiteReader(site, report, inputs) for site in report.found]
        self._caches = [site.cache.k_index for site in report.found]
        self._context = torch_private.tracing_context()
        self._variants: dict[str, Callable[..., Any]] = {expected: self._compile(expected)}

    def __call__(self, *args: Any) -> Any:
        layers = [layer_of(args[i]) for i in self._caches]
        known = [layer for layer in layers if layer is not None]
        if not known:
            return self._variant(PLAIN)(*args)
        if len(known) < len(layers) or len({id(layer.caches) for layer in known}) != 1:
            raise HeadforceError(
                "HF-ADOPT", found="caches of which headforce owns only some, or of two streams", needed="one stream's"
            )
        caches = known[0].caches
        caches.session.uses(self)
        for reader, layer in zip(self._readers, known, strict=True):
            reader.enter(layer, args)
        return self._variant(OWNED)(*args, *_added(known))

    def _variant(self, name: str) -> Callable[..., Any]:
        if name not in self._variants:
            with torch_private.late_compilation(self._context) as added_guards:
                compiled = self._compile(name)
            if added_guards():
                raise HeadforceError(
                    "HF-LATE",
                    found=f"a graph whose {name} variant needs guards that it was not compiled with",
                    needed="the model prepared (or restored) before this graph was first compiled",
                )
            self._variants[name] = compiled
        return self._variants[name]

    def _compile(self, name: str) -> Callable[..., Any]:
        # Compilers change the graph they are given, and another variant may be needed later.
        module, sites = torch_private.copy_graph(self._module, self.report.found)
        if name == PLAIN:
            return compile_inner(module, self._examples, self.settings)
        for site in sites:
            _check_ownable(site)
        device = next(e.device for e in self._examples if isinstance(e, Tensor))
        lowered = lower_owned(module, self._examples, sites, self.settings.target or "sdpa", device)
        return compile_inner(lowered.module, lowered.examples, self.settings)


class _SiteReader:
    """Reads the numbers of one site from the arguments of a call."""

    def __init__(self, site: Site, report: SiteReport, inputs: Sequence[torch.fx.Node]) -> None:
        self.site = site
        rope, cache = site.rope, site.cache
        clock = (rope.query_start, rope.tokens_per_frame) if rope else (None, None)
        self._numbers = report.binder.compile(
            [
                -1 if clock[0] is None else clock[0],
                1 if clock[1] is None else clock[1],
                site.query_rows,
                cache.append.start,
                cache.roll.evicted if cache.roll else 0,
                cache.roll.sink if cache.roll else -1,
                cache.read.stop - cache.read.start,
                cache.capacity,
                site.batch,
            ]
        )
        tables = rope.tables if rope else ()
        self._tables = [inputs.index(node) for node in tables] if all(node in inputs for node in tables) else []

    def enter(self, layer: LayerState, args: Sequence[Any]) -> None:
        start, rows, tokens, first_row, evicted, sink, read_rows, cache_rows, batch = self._numbers(args)
        if tokens % rows:
            raise HeadforceError(
                "HF-FRAME",
                site=self.site.name,
                found=f"{tokens} query rows with {rows} tokens in a frame",
                needed="whole frames",
            )
        caches = layer.caches
        if caches.rotation is None:
            tables = [args[i] for i in self._tables]
            theta = temporal_rates(self.site, tables) if tables else torch.zeros(0, dtype=torch.float64)
            caches.rotation = Rotation(theta, *rotated_pairs(self.site))
        facts = PassFacts(
            start, tokens // rows, rows, first_row, evicted, sink if sink >= 0 else None, read_rows, cache_rows
        )
        device = args[self.site.cache.k_index].device
        shape = PageShape(batch, rows, self.site.head_dim, self.site.value_dim, self.site.cache.dtype, device)
        caches.enter(layer, facts, shape, self.site.heads)


def _added(layers: Sequence[LayerState]) -> list[Tensor]:
    """Pools, theta and tables, in the order in which `lower_owned` appended its inputs."""
    pool, rotation = layers[0].caches.pool, layers[0].caches.rotation
    assert pool is not None
    assert rotation is not None
    added = [pool.k, pool.v, rotation.theta]
    for layer in layers:
        added += [pool.reads[layer.layer], pool.runs[layer.layer], pool.pages[layer.layer]]
    return added


def _check_ownable(site: Site) -> None:
    """Raises unless K and V of the site can live in our pools."""
    where = f"{site.name} ({site.where})"
    if site.cache.kind != "append":
        raise HeadforceError("HF-OWNED", site=where, found="a history that is joined by cat", needed="a cache in place")
    if site.mask.kind not in ("none", "all_true"):
        raise HeadforceError("HF-MASK", site=where, found=f"a {site.mask.kind} mask", needed="no mask")
    if site.heads != site.kv_heads:
        raise HeadforceError(
            "HF-OWNED", site=where, found=f"{site.heads} heads over {site.kv_heads} K/V heads", needed="as many of both"
        )
    if site.rope is None or site.rope.query_start is None or site.rope.tokens_per_frame is None:
        notes = "; ".join(site.notes) or "no RoPE"
        raise HeadforceError("HF-CLOCK", site=where, found=notes, needed="RoPE that shows the frame of the query")
    if site.cache.keys_rotated != "before":
        raise HeadforceError("HF-OWNED", site=where, found="keys rotated when read", needed="keys rotated when written")
