"""Who decides what stores write: each question goes to the file of its operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...policy import Decide
from ..lane import Lane
from ..pool import PagePool
from ..stream import Decider
from .episodic import novelty
from .select import selection
from .turning import Turning


def decider(pool: PagePool, turning: Turning, queries: Sequence[Tensor] | None = None) -> Decider:
    """Decides for the next commit of the pool's stream; to be given to its `begin`, and made anew for every call.

    `queries`: [B, 1, H, D] for each layer, the mean query of the last pass, for scores that look at it.

    Nothing is computed before the stream asks, and the host waits for the device once for each kind of store.
    """
    novel, choose = novelty(pool, turning), selection(pool, turning, queries)

    def of_lane(lane: Lane) -> Decide:
        return Decide(novel(lane), choose(lane))

    return of_lane
