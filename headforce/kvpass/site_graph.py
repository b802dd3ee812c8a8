"""A compiled graph with attention sites, and what happens when it is called.

The same graph may be called with caches that headforce owns, with caches that it watches, and with others: Dynamo
shares graphs between models of one class. Which variant of the graph runs is therefore decided on every call, by whose
caches it was given; a variant is compiled when it is first needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from ..errors import HeadforceError
from ..lowering.targets import default_target
from ..lowering.watch import watching
from . import torch_private
from .bodies import compile_body
from .captured import Captured
from .checking import Checker
from .cuda_graphs import find_recorder
from .eligible import check_ownable, check_viewable
from .inner import compile_inner
from .layers import OBSERVED, OWNED, PLAIN, PROBED, VIEW, Caches, Layer, layer_of
from .lower import Lowered, lower_owned, lower_probed, lower_view
from .notes import Notes
from .options import Options
from .parted import Parted, partable, parted
from .site import SiteReport
from .site_reader import SiteReader
from .unprepared import Unprepared

log = logging.getLogger("headforce")

_LOWERINGS = {
    OWNED: (check_ownable, lower_owned),
    OBSERVED: (check_ownable, partial(lower_owned, observed=True)),
    VIEW: (check_viewable, lower_view),
    PROBED: (check_viewable, lower_probed),
}


def check_refused(report: SiteReport, settings: Options) -> None:
    """Raises for a site that cannot be rewritten, or logs it, as `on_refuse` says."""
    errors = [
        HeadforceError(r.code, site=f"{r.site} ({r.where})", found=r.found, needed=r.needed) for r in report.refused
    ]
    if errors and settings.on_refuse == "error":
        raise errors[0]
    for error in errors:
        log.warning("headforce: left as it is: %s", error)


class SiteGraph:
    """One captured graph, its sites, and the variants that were compiled of it.

    Args:
        module: the graph, which nobody else changes. example_inputs: what Dynamo gave the backend with it.
        expected: the variant to compile now, while the compiler may still add guards.
        notes: its log and dump.
    """

    def __init__(
        self,
        module: GraphModule,
        example_inputs: Sequence[Any],
        settings: Options,
        report: SiteReport,
        expected: str,
        notes: Notes,
    ) -> None:
        self.report = report
        self._notes = notes
        self.settings = settings
        self._module = module
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        # Dynamo's examples are the real tensors of the first call; kept here, they would never be freed.
        self._examples = [node.meta.get("example_value", e) for node, e in zip(inputs, example_inputs, strict=True)]
        caches = [self._examples[site.cache.k_index] for site in report.found]
        self._device = next(e.device for e in (*caches, *self._examples) if isinstance(e, Tensor))
        self._target = settings.target or default_target(self._device)
        self._readers = [SiteReader(site, report, inputs) for site in report.found]
        self._caches = [site.cache.k_index for site in report.found]
        self._unprepared: Unprepared | None = None
        self._context = torch_private.tracing_context()
        self._variants: dict[str, Callable[..., Any]] = {expected: self._compile(expected)}

    def __call__(self, *args: Any) -> Any:
        layers = self._layers([args[i] for i in self._caches])
        if not layers:
            return self._variant(PLAIN)(*args)
        caches = layers[0].caches
        # First the variant: what cannot be compiled is refused before anything moves.
        run = self._variant(caches.variant)
        if caches.session is not None:
            caches.session.uses(self)
        for reader, layer in zip(self._readers, layers, strict=True):
            reader.enter(layer, args, self._target)
        added = caches.inputs(layers)
        with self._notes.running(layers), self._checked(caches, layers):
            return run(*args, *added)

    def _checked(self, caches: Caches, layers: Sequence[Layer]) -> AbstractContextManager[None]:
        """Checks what runs inside, as far as that was asked for."""
        checks = self.settings.checks if caches.session is None else caches.session.verify
        if not checks.launches:
            caches.unseen()
            return nullcontext()
        policy = self.settings.policy if caches.session is None else caches.session.policy
        return watching(Checker(checks, self.report.found, layers, policy, self._target))

    def _layers(self, keys: Sequence[Tensor]) -> list[Layer]:
        """The layers whose K caches these are; empty if headforce has nothing to do with them."""
        layers = [layer_of(key) for key in keys]
        known = [layer for layer in layers if layer is not None]
        policy = self.settings.policy
        sessions = {layer.caches.session for layer in known} - {None}
        if policy is not None and any(session.policy != policy for session in sessions if session is not None):
            raise HeadforceError(
                "HF-OPTION",
                site="policy",
                found="a policy in the options, and caches that a model was prepared with under another policy",
                needed="one policy; leave it out of the options of a prepared model",
            )
        if policy is not None and not sessions:
            self._unprepared = self._unprepared or Unprepared(self.report, self.settings)
            return self._unprepared.layers(keys, known)
        if len(known) not in (0, len(layers)) or len({id(layer.caches) for layer in known}) > 1:
            raise HeadforceError(
                "HF-ADOPT", found="caches of which headforce knows only some, or of two streams", needed="one stream's"
            )
        return known

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
        check_refused(self.report, self.settings)
        check, lower = _LOWERINGS[name]
        for site in sites:
            check(site)
        lowered = lower(module, self._examples, sites, self._target, self._device)
        self._notes.lowered(name, lowered.module)
        tables = [table for site in sites if site.rope is not None for table in site.rope.all_tables]
        if self.settings.cudagraphs:
            return self._capturing(name, lowered, tables)
        if name in (OWNED, OBSERVED) and partable(lowered.module, lowered.examples, tables):
            parts = self._parted(lowered, tables)
            return parts.joined(compile_body(parts, self.settings))
        return compile_inner(lowered.module, lowered.examples, self.settings)

    def _capturing(self, name: str, lowered: Lowered, tables: Sequence[Node]) -> Captured:
        """A variant whose passes are captured; HF-CUDAGRAPHS where that cannot be."""
        if name not in (OWNED, OBSERVED):
            raise HeadforceError(
                "HF-CUDAGRAPHS", site="cudagraphs", found=f"{name} mode", needed="a model prepared in owned mode"
            )
        recorder = find_recorder(self._device, self._target)
        parts = self._parted(lowered, tables)
        return Captured(parts, compile_body(parts, self.settings), recorder, self._device)

    def _parted(self, lowered: Lowered, tables: Sequence[Node]) -> Parted:
        return parted(lowered.module, lowered.examples, len(lowered.examples) - len(self._examples), tables)

    @property
    def captured(self) -> list[Captured]:
        """Its variants whose passes are captured."""
        return [variant for variant in self._variants.values() if isinstance(variant, Captured)]
