"""What headforce itself costs in a pass on the CPU: everything but the model's own arithmetic.

    hooks     before and after the call of the model: whose caches these are, resets, that every layer ran
    wrapper   between Dynamo's graph and the compiled one: the clock, and once a chunk planning, tables, page pools
    op        in the operators: grouping heads by their tables, copies, views, and Python

Seconds are those of the processor in the thread that runs the model: what else the machine does is not in them. Time in
`scaled_dot_product_attention`, in page writes (which take the place of the model's cache writes) and in the compiled
graph is not headforce's. Operators are watched through the target: what torch takes to call one is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import headforce.kvpass.session as session
import headforce.lowering.targets.sdpa as sdpa
from headforce.kvpass.site_graph import SiteGraph
from headforce.lowering.targets import registry

PARTS = ("hooks", "wrapper", "op")


class Overhead:
    """Milliseconds of each part. Time inside a part that is somebody else's is taken off."""

    def __init__(self) -> None:
        self.ms = dict.fromkeys(PARTS, 0.0)
        self._inside: list[float] = []

    def taken(self) -> dict[str, float]:
        """What came together since it was asked last."""
        ms, self.ms = self.ms, dict.fromkeys(PARTS, 0.0)
        return ms

    def ours(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts, but for what `others` and other parts take inside it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            spent, result = self._spent(function, args, kwargs)
            self.ms[part] += spent
            return result

        return timed

    def others(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time does not count."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            return self._spent(function, args, kwargs)[1]

        return timed

    def _spent(self, function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[float, Any]:
        self._inside.append(0.0)
        begin = time.thread_time()
        try:
            result = function(*args, **kwargs)
        finally:
            spent = (time.thread_time() - begin) * 1e3
            inside = self._inside.pop()
            if self._inside:
                self._inside[-1] += spent
        return spent - inside, result


class _Functional:
    """`torch.nn.functional` as the target sees it, with attention timed."""

    def __init__(self, functional: Any, overhead: Overhead) -> None:
        self._functional = functional
        self.scaled_dot_product_attention = overhead.others(functional.scaled_dot_product_attention)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functional, name)


@contextmanager
def watched() -> Iterator[Overhead]:
    """Everything that headforce does inside is timed. Models are prepared inside too."""
    overhead = Overhead()
    variant = SiteGraph._variant
    target = registry.find_target("sdpa")
    patches: list[tuple[Any, str, Any]] = [
        (session.Session, "_before", overhead.ours("hooks", session.Session._before)),
        (session.Session, "_after", overhead.ours("hooks", session.Session._after)),
        (SiteGraph, "__call__", overhead.ours("wrapper", SiteGraph.__call__)),
        (SiteGraph, "_variant", lambda graph, name: overhead.others(variant(graph, name))),
        (sdpa, "F", _Functional(sdpa.F, overhead)),
    ]
    before = [(holder, name, holder.__dict__[name]) for holder, name, _ in patches]
    for holder, name, new in patches:
        setattr(holder, name, new)
    registry._TARGETS["sdpa"] = overhead.ours("op", target)
    try:
        yield overhead
    finally:
        registry._TARGETS["sdpa"] = target
        for holder, name, old in before:
            setattr(holder, name, old)
