"""Making the parts that stores keep: the registry of makers, and what runs them before a pass.

A maker is one function in the file of its operator: from rows of whole frames, or of parts that the store has already,
it makes the rows of new parts. Its plain torch form is its meaning.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import HeadforceError
from ...policy import Part
from ..lane import Making
from ..pool import PagePool
from .rows import Rows
from .turning import Turning

ENTRY_POINTS = "headforce.makers"

Maker = Callable[[Rows, Any, Sequence[Part], Turning], tuple[Tensor, Tensor]]
"""(rows of C heads, the operator, n parts, how keys are turned) -> keys [C, n, T / of, D] and values [C, n, T / of, Dv]
as they are stored."""

AT_ONCE = 2**28
"""Bytes of whole frames, in float32, that are worked on at a time."""

_MAKERS: dict[str, Maker] = {}
_F = TypeVar("_F", bound=Maker)


def maker(name: str) -> Callable[[_F], _F]:
    """Decorator: registers the maker of the operator called `name`."""

    def register(function: _F) -> _F:
        _MAKERS[name] = function
        return function

    return register


def load_makers() -> dict[str, Maker]:
    """All makers by the name of their operator, those of installed plugins included."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_MAKERS.items()))


def find_maker(name: str) -> Maker:
    """The maker of an operator; HF-DECISION if nobody registered one."""
    if name not in _MAKERS:
        known = load_makers()
        if name not in known:
            raise HeadforceError(
                "HF-DECISION", found=f"no maker for the parts of {name}()", needed="one of " + ", ".join(known)
            )
    return _MAKERS[name]


def make_parts(pool: PagePool, turning: Turning) -> None:
    """Makes what the pool's stream wants made; to be called before its tables are uploaded and a pass writes pages.

    The last pass of the history must still be in its pages. Raises HF-ROPE where a part is made of raw keys and it is
    not known how keys were turned; nothing has changed then.
    """
    while pool.stream.making:
        making = pool.stream.making[0]
        for done in _make(pool, turning, making):
            pool.stream.making[0] = replace(making, done=done)  # a pass that is tried again goes on from here
        del pool.stream.making[0]


def _make(pool: PagePool, turning: Turning, making: Making) -> Iterator[int]:
    """Makes the parts of some heads at a time; how many have them then, each time."""
    assert pool.regions is not None
    lane = pool.stream.lanes[making.lane]
    first, of = lane.store_page[making.term.store], making.parts[0].of
    old = {part.content: first * part.of + part.place for part in making.old}
    base = torch.from_numpy(pool.regions.base[pool.stream.lane_of == making.lane]).to(pool.k.device)
    new = making.new
    step = max(1, AT_ONCE // (max(1, len(making.sources)) * pool.k[0].numel() * 4))
    make = find_maker(making.term.op.name)
    done = making.done
    for some in base[done:].split(step):
        rows = Rows(pool.k, pool.v, some, making.page, old)
        made = make(rows, making.term.op, new, turning) if new else (None, None)
        # Whatever takes memory, and parts that only change their place, come before anything is written.
        kept = [part for part in making.parts if part.content in old]
        sources = [old[part.content] for part in kept]
        held = [rows.take(tensor, sources, of) if kept else None for tensor in (pool.k, pool.v)]
        for tensor, fresh, moved in zip((pool.k, pool.v), made, held, strict=True):
            if fresh is not None:
                rows.put(tensor, [first * of + part.place for part in new], of, fresh)
            if moved is not None:
                rows.put(tensor, [first * of + part.place for part in kept], of, moved)
        done += len(some)
        yield done
