"""Checking a compiled graph while it runs: which layer an operator is of, and where in the model a failure is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import HeadforceError
from ..lowering.verify import Deviation, Verification, deviation, write_launch
from ..lowering.verify.case import Case
from ..lowering.verify.launches import SAMPLED
from ..lowering.watch import Launch
from ..policy import Policy
from .layers import Layer
from .owned_caches import OwnedCaches
from .site import Site


class Checker:
    """Looks on at one call of a graph (`lowering.watch`).

    Args:
        settings: what is checked. sites, layers: of the graph, in its order. target: that attention runs on.
    """

    def __init__(
        self,
        settings: Verification,
        sites: Sequence[Site],
        layers: Sequence[Layer],
        policy: Policy | None,
        target: str,
    ) -> None:
        self._settings, self._policy, self._target = settings, policy, target
        self._places = {}
        for site, layer in zip(sites, layers, strict=True):
            reads, _, *pages = layer.caches.tables(layer)
            # Operators see the tables they were given, and no two layers share one.
            self._places.update({table.data_ptr(): (site, layer) for table in (reads, *pages)})

    def wrote(self, key: Tensor, value: Tensor, k_pool: Tensor, v_pool: Tensor, pages: Tensor) -> None:
        """The fingerprints of what was to be written, for "full"."""
        _, layer = self._places[pages.data_ptr()]
        caches = layer.caches
        assert isinstance(caches, OwnedCaches)
        if caches.contents is not None:
            assert caches.pool is not None
            assert caches.chunk is not None
            caches.contents.wrote(layer.number, caches.chunk.queries, key, value, caches.pool)

    def attended(self, launch: Launch, result: Tensor) -> None:
        """HF-VERIFY-SITE if attention is off, or read what nobody wrote."""
        site, layer = self._places[launch.reads.data_ptr()]
        caches = layer.caches
        if isinstance(caches, OwnedCaches) and caches.contents is not None:
            assert caches.pool is not None
            caches.contents.check(layer.number, caches.pool)
        if not self._settings.whole and layer.launches % self._settings.every:
            return
        found = deviation(launch, result, None if self._settings.whole else SAMPLED, seed=layer.launches)
        if found is not None:
            case, error = Case(launch, self._target), _refusal(found, launch, site, layer)
            raise write_launch(self._settings.folder, error, case, self._policy, caches.plan)


def _refusal(found: Deviation, launch: Launch, site: Site, layer: Layer) -> HeadforceError:
    caches = layer.caches
    words = f"attention off by {found.error:.3g} in query row {found.rows[0]}"
    if found.likeness:
        words += f", {found.likeness}"
    if found.run is not None:
        row, rows, shift = launch.runs[found.run].tolist()
        frames = caches.frames_at(layer, found.batch, found.head, row, rows)
        words += f" (run {found.run}: rows {row} to {row + rows - 1}, shift {shift}, {frames})"
    kind = None
    if isinstance(caches, OwnedCaches) and caches.stream is not None:
        kind = caches.stream.policy.classes[layer.number][found.head]
    return HeadforceError(
        "HF-VERIFY-SITE",
        site=f"{site.name} ({site.where}), layer {layer.number}, batch row {found.batch}, head {found.head}"
        + (f" of class {kind}" if kind else ""),
        found=words,
        needed=f"at most {found.limit:.3g}, against the same attention in float64",
    )
