"""Reading the numbers of a site from the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from ..errors import HeadforceError
from ..lowering.state.turning import Turning
from ..lowering.targets import check_rows
from .layers import Layer, PassFacts, RopeTables
from .rope_rates import place_angles, rotated_pairs, temporal_rates
from .site import Site, SiteReport


class SiteReader:
    """One site of a graph. `enter` is called for every launch of it."""

    def __init__(self, site: Site, report: SiteReport, inputs: Sequence[Node]) -> None:
        self.site = site
        rope, cache = site.rope, site.cache
        unknown = rope is None or rope.query_start is None or rope.tokens_per_frame is None
        after = rope is not None and cache.keys_rotated == "after"
        self._numbers = report.binder.compile(
            [
                -1 if unknown else rope.query_start,
                1 if unknown else rope.tokens_per_frame,
                site.query_rows,
                cache.append.start,
                cache.capacity,
                cache.roll.evicted if cache.roll else 0,
                cache.roll.sink if cache.roll else -1,
                site.batch,
                -1 if not after else rope.key_start,
                *(row for segment in cache.segments for row in segment),
            ]
        )
        known: dict[Node, Callable[[Sequence[Any]], Tensor]] = {node: itemgetter(i) for i, node in enumerate(inputs)}
        known |= {node: _always(value) for node, value in (rope.made if rope else ())}
        tables = rope.tables if rope else ()
        self._tables = [known[node] for node in tables] if all(node in known for node in tables) else []
        places = rope.places if rope and rope.grid and self._tables else ()
        if not all(node in known for place in places for node in place.tables):
            places = ()
        self._places = {place: [known[node] for node in place.tables] for place in places}
        self._grid = _compiled(report, rope.grid) if rope is not None and rope.grid is not None else None

    def enter(self, layer: Layer, args: Sequence[Any], target: str) -> None:
        """Tells the layer's caches that its site is about to run, on `target`.

        Raises whatever they refuse, HF-FRAME, HF-ROPE, and HF-KERNEL for frames that are too short for the target.
        """
        facts = self.facts(args)
        session = layer.caches.session
        parts = 1 if session is None else session.policy.parts_of_frame(facts.rows)
        check_rows(target, max(1, facts.rows // parts))
        layer.caches.enter(layer, facts, self.site, self._rope(args))

    def facts(self, args: Sequence[Any]) -> PassFacts:
        """What the site shows of a pass; HF-FRAME for a part of a frame. Without a clock, `start` is -1."""
        start, rows, tokens, first_row, cache_rows, evicted, sink, batch, key_start, *bounds = self._numbers(args)
        written = bounds[-1] - first_row  # what is read ends where the write ends
        if tokens % rows or written % rows or not written:
            raise HeadforceError(
                "HF-FRAME",
                site=self.site.name,
                found=f"{tokens} query rows with {rows} tokens in a frame, of which {written} are cached",
                needed="whole frames",
            )
        lead = (tokens - written) // rows
        return PassFacts(
            start=start + lead if start >= 0 else start,
            frames=written // rows,
            lead=lead,
            rows=rows,
            first_row=first_row,
            cache_rows=cache_rows,
            segments=tuple(zip(bounds[::2], bounds[1::2], strict=True)),
            evicted=evicted,
            sink=sink if sink >= 0 else None,
            batch=batch,
            key_start=key_start if self.site.cache.keys_rotated == "after" else None,
            device=args[self.site.cache.k_index].device,
        )

    def _rope(self, args: Sequence[Any]) -> RopeTables:
        grid = None if self._grid is None else tuple(self._grid(args))
        tables = (*self._tables, *(table for of_place in self._places.values() for table in of_place))
        return RopeTables(tuple(table(args) for table in tables), grid, lambda: self._rotation(args, grid))

    def _rotation(self, args: Sequence[Any], grid: tuple[int, ...] | None) -> Turning:
        tables = [table(args) for table in self._tables]
        theta = temporal_rates(self.site, tables) if tables else torch.zeros(0, dtype=torch.float64)
        places = None
        if self._places and grid is not None:
            values = {place: [table(args) for table in of_place] for place, of_place in self._places.items()}
            places = place_angles(self.site, values, grid)
        # The table may lie on another device, from where the graph moves what it takes of it.
        device = args[self.site.cache.k_index].device
        places = None if places is None else places.to(device)
        return Turning(theta.to(device), *rotated_pairs(self.site), places, grid)


def _always(value: Tensor) -> Callable[[Sequence[Any]], Tensor]:
    return lambda args: value


def _compiled(report: SiteReport, grid: Sequence[sympy.Expr]) -> Callable[[Sequence[Any]], tuple[int, ...]] | None:
    """Reads a grid from the arguments of a call; None where no argument shows it."""
    try:
        return report.binder.compile(grid)
    except KeyError:
        return None
