"""Models that nobody prepared, compiled with a policy in the options: view mode, with what the graph alone shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from ..errors import HeadforceError
from .layers import Layer, viewed
from .options import Options
from .site import SiteReport
from .view_caches import ViewCaches
from .view_plans import ViewPlans


class Unprepared:
    """Finds the layers of one graph's sites, and adopts caches that it has not seen.

    Raises HF-LAYER-ID when the policy tells layers apart and the graph does not.
    """

    def __init__(self, report: SiteReport, settings: Options) -> None:
        assert settings.policy is not None
        self._order = _order(report) if settings.policy.by_layer else list(range(len(report.found)))
        self._plans = ViewPlans.of(settings.policy, len(report.found), settings.verify == "plan")
        self._joined = any(site.cache.kind == "cat" for site in report.found)
        self._own: ViewCaches | None = None

    def layers(self, keys: Sequence[Tensor], known: Sequence[Layer]) -> list[Layer]:
        """The layers of these K caches, site by site; `known` are those of them that were adopted before."""
        if self._joined:
            # A past that is joined anew in every pass has no identity, and nothing is remembered of it.
            self._own = self._own or ViewCaches(self._plans, ())
            self._own.rotation = None
            return [self._own.layers[i] for i in self._order]
        caches = {id(layer.caches): layer.caches for layer in known}
        mine = [c for c in caches.values() if isinstance(c, ViewCaches) and c.plans is self._plans]
        if len(known) == len(keys) and len(caches) == len(mine) == 1:
            return list(known)
        for other in {layer.caches for layer in viewed.values()}:
            if id(other) in caches or not other.in_use:
                other.release()
        by_layer = sorted(zip(self._order, keys, strict=True), key=lambda pair: pair[0])
        adopted = ViewCaches(self._plans, [key for _, key in by_layer])
        return [adopted.layers[i] for i in self._order]


def _order(report: SiteReport) -> list[int]:
    """The layer of each site, from the numbers in the names of its cache and of its module."""
    for names in ([report.inputs[s.cache.k_input.name] for s in report.found], [s.name for s in report.found]):
        numbers = [re.findall(r"\d+", name) for name in names]
        shapes = {re.sub(r"\d+", "#", name) for name in names}
        columns = [[int(n) for n in column] for column in zip(*numbers, strict=False)] if len(shapes) == 1 else []
        differing = [column for column in columns if len(set(column)) > 1]
        if len(differing) == 1 and sorted(differing[0]) == list(range(len(names))):
            return differing[0]
    raise HeadforceError(
        "HF-LAYER-ID",
        site=", ".join(f"{site.name} ({site.where})" for site in report.found[:3]),
        found=f"a policy that tells layers apart, and a graph with {len(report.found)} attention sites, "
        "whose layers have no numbers from 0 on",
        needed="one graph with all layers, or a prepared model",
    )
