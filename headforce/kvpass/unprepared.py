"""Models that nobody prepared, compiled with a policy in the options: view mode, with what the graph alone shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from ..errors import HeadforceError
from .layers import Layer, viewed
from .options import Options
from .site import SiteReport
from .torch_private import storage_key
from .view_caches import ViewCaches
from .view_plans import ViewPlans


class Unprepared:
    """Finds the layers of one graph's sites, and adopts caches that it has not seen.

    Raises HF-LAYER-ID when the policy tells layers apart and the graph does not.
    """

    def __init__(self, report: SiteReport, settings: Options) -> None:
        assert settings.policy is not None
        self._order = _order(report) if settings.policy.by_layer else list(range(len(report.found)))
        self._plans = ViewPlans.of(settings.policy, len(report.found), settings.checks.plans)
        self._joined = any(site.cache.kind == "cat" for site in report.found)
        self._own: ViewCaches | None = None

    def layers(self, keys: Sequence[Tensor], known: Sequence[Layer]) -> list[Layer]:
        """The layers of these K caches, site by site; `known` are those of them that were adopted before."""
        if self._joined:
            # A past that is joined anew in every pass has no identity, and nothing is remembered of it.
            self._own = self._own or ViewCaches(self._plans, ())
            self._own.forget_rotation()
            return [self._own.layers[i] for i in self._order]
        caches = {id(layer.caches): layer.caches for layer in known}
        mine = [c for c in caches.values() if isinstance(c, ViewCaches) and c.plans is self._plans]
        if len(known) == len(keys) and len(caches) == len(mine) == 1:
            return list(known)
        mine_now = [storage_key(key) for key in keys]
        for key, layer in list(viewed.items()):
            # Of the same memory, cut in another way, only the newest cut is in use: a batch of another size.
            stale = id(layer.caches) in caches or any(key.overlaps(new) for new in mine_now)
            if not layer.caches.in_use or (stale and layer.caches.session is None):
                layer.caches.release()
        by_layer = sorted(zip(self._order, keys, strict=True), key=lambda pair: pair[0])
        adopted = ViewCaches(self._plans, [key for _, key in by_layer])
        return [adopted.layers[i] for i in self._order]


def _order(report: SiteReport) -> list[int]:
    """The layer of each site, from the numbers in the names of its cache and of its module, which must not disagree."""
    sources = ([report.inputs[s.cache.k_input.name] for s in report.found], [s.name for s in report.found])
    numbered = [numbers for names in sources if (numbers := _numbers(names)) is not None]
    if numbered and sorted(numbered[0]) == list(range(len(report.found))) and all(n == numbered[0] for n in numbered):
        return numbered[0]
    raise HeadforceError(
        "HF-LAYER-ID",
        site=", ".join(f"{site.name} ({site.where})" for site in report.found[:3]),
        found=f"a policy that tells layers apart, and a graph with {len(report.found)} attention sites, "
        "whose layers have no numbers from 0 on",
        needed="one graph with all layers, or a prepared model",
    )


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The one number in which all names differ; None if there is none, or if a name is our own."""
    if any(re.fullmatch(r"site\d+", name) or "#" in name for name in names):
        return None
    if len({re.sub(r"\d+", "#", name) for name in names}) != 1:
        return None
    columns = zip(*([int(n) for n in re.findall(r"\d+", name)] for name in names), strict=True)
    differing = [list(column) for column in columns if len(set(column)) > 1]
    return differing[0] if len(differing) == 1 else None
