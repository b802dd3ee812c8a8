"""`headforce.probe`: a model that runs as it is, while what its heads attend to is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import HeadforceError
from ..lowering.verify import Verification
from ..policy import Policy
from .capture import LayerCache, find_model
from .layers import PROBED, Caches
from .probed_caches import ProbedCaches
from .recorder import Recorder
from .session import Session, session_of


def probe(model: Any, *, queries: float = 0.25, seed: int = 0, by_query: bool = False) -> Probe:
    """Measures what every head of `model` attends to in every pass. Compile the model afterwards, as after `prepare`.

    The model keeps its cache, its attention and all of its numbers; a sweep over the keys runs next to each of its
    attention calls.

    Args:
        model: a model of a known family, or a pipeline that holds one.
        queries: the share of the query rows of every frame that is measured, more than 0 and at most 1.
        seed: of their choice, which nothing else influences.
        by_query: statistics of every query frame instead of the chunk.

    Returns a `Probe`, whose `recorder` has the statistics; `restore()` ends it. Raises HF-OPTION for a share out of
    range, HF-ADAPTER for an unknown family, HF-PREPARED for a model that is prepared.
    """
    if not 0 < queries <= 1:
        raise HeadforceError("HF-OPTION", site="queries", found=repr(queries), needed="more than 0 and at most 1")
    return Probe(model, Recorder(queries, seed, by_query))


class Probe(Session):
    """A model that is probed: a session whose policy is the model's own.

    Attributes:
        recorder: what was measured.
        misses: how often a layer's attention ran unmeasured, because the pass was not compiled.
    """

    def __init__(self, model: Any, recorder: Recorder) -> None:
        module, adapter = find_model(model)
        if session_of(module) is not None:
            raise HeadforceError("HF-PREPARED", found="a model that is prepared already", needed="restore() first")
        checks = Verification.of("off", 1)
        super().__init__(module, Policy({}), adapter, mode=PROBED, canonical=True, verify=checks)
        self.recorder = recorder

    def __enter__(self) -> Probe:
        return self

    def _watched(self, caches: Sequence[LayerCache]) -> Caches:
        return ProbedCaches(self.recorder, [cache.tensors()[0] for cache in caches], self, caches)
