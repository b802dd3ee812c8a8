"""One rollout of an example, and what every call of the model returned."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import Example
from ..errors import HeadforceError
from ..kvpass.capture import find_model
from ..kvpass.lower import MOST_SITES
from ..kvpass.session import prepare
from ..kvpass.torch_private import compiling_seconds
from ..policy import Policy

SEED = 0


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    Attributes:
        policy: what heads remember; None is the model as it is, eager.
        mode, target, inner, canonical, verify: as `headforce.prepare` and the backend take them.
        writes: whether a check that fails leaves its folder.
    """

    policy: Policy | None = None
    mode: str = "owned"
    target: str | None = None
    inner: str = "inductor"
    canonical: bool = False
    verify: str = "off"
    writes: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Options of the backend."""
        return {"inner": self.inner, **({} if self.target is None else {"target": self.target})}


@dataclass
class Recorded:
    """A rollout: the tensors that each call returned, and what became of the model's attention.

    A call may return none, as one that only fills a cache does, but not all of them: see `record`.
    `seconds` is the time of all calls without that of compiling, which is `compiling`.
    """

    outputs: list[list[Tensor]] = field(default_factory=list)
    rewritten: int = 0
    refused: int = 0
    misses: int = 0
    launches: list[int] = field(default_factory=list)
    seconds: float = 0.0
    compiling: float = 0.0


def record(example: Example, way: Way, found: Recorded | None = None) -> Recorded:
    """Makes the calls on a copy of the example, from one seed, and keeps what the model returns.

    Args:
        found: where to put it, for who wants to know how far a rollout came that raises.

    Raises HF-ADAPTER for a model that no adapter knows, HF-EXAMPLE if no call reaches the model or none returns a
    number that could be compared, and whatever refuses.
    """
    copied = example.copied()
    model, _ = find_model(copied.model)
    found = Recorded() if found is None else found
    kinds: dict[str, None] = {}

    def note(_model: nn.Module, _args: Any, output: Any) -> None:
        kinds[type(output).__name__] = None
        found.outputs.append(list(_tensors(output)))

    torch._dynamo.reset()
    with ExitStack() as stack:
        stack.callback(torch._dynamo.reset)
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(torch.no_grad())
        torch.manual_seed(SEED)
        session = None
        if way.policy is not None:
            given = {"mode": way.mode, "canonical_order": way.canonical, "verify": way.verify}
            session = stack.enter_context(prepare(copied.model, way.policy, **given))
            if not way.writes:
                session.verify = replace(session.verify, folder=None)
            session.compile(**way.options)
        # Behind the session's own hook, which raises if the pass was not what it should be.
        stack.callback(model.register_forward_hook(torch._dynamo.disable(note)).remove)
        begin, compiled = time.perf_counter(), compiling_seconds()
        try:
            copied.run()
        finally:
            found.compiling = compiling_seconds() - compiled
            found.seconds = time.perf_counter() - begin - found.compiling
        if session is not None:
            report = session.report
            found.rewritten, found.refused = report.count("rewritten"), report.count("refused")
            found.misses, found.launches = session.misses, session.launches
    _check_comparable(found, kinds)
    return found


def _check_comparable(found: Recorded, kinds: Iterable[str]) -> None:
    """HF-EXAMPLE for a rollout of which nothing can be compared. `kinds`: of what the model returned."""
    if not found.outputs:
        raise HeadforceError(
            "HF-EXAMPLE", found="calls that do not reach the model", needed="calls of the model that is handed over"
        )
    if not any(tensor.numel() for output in found.outputs for tensor in output):
        raise HeadforceError(
            "HF-EXAMPLE",
            found=f"calls that return no number ({', '.join(kinds)})",
            needed="a model that returns tensors",
            hint="They may lie in tuples, lists, mappings and dataclasses; of other objects nothing can be compared.",
        )


def _tensors(output: Any) -> Iterator[Tensor]:
    """Copies of all tensors in what a model returned, in order."""
    if isinstance(output, Tensor):
        yield output.detach().clone()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from _tensors(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for part in fields(output):
            yield from _tensors(getattr(output, part.name, None))


@contextmanager
def most_sites(count: int | None) -> Iterator[None]:
    """Inside, only the first `count` sites of a graph run on the target; None for all."""
    before = os.environ.pop(MOST_SITES, None)
    if count is not None:
        os.environ[MOST_SITES] = str(count)
    try:
        yield
    finally:
        os.environ.pop(MOST_SITES, None)
        if before is not None:
            os.environ[MOST_SITES] = before


def deviations(found: Recorded, expected: Recorded) -> list[float]:
    """For every call, the largest difference over the largest value; infinite for NaN, and for other shapes.

    Raises HF-EXAMPLE for rollouts of another number of calls.
    """
    if len(found.outputs) != len(expected.outputs):
        raise HeadforceError(
            "HF-EXAMPLE",
            found=f"{len(found.outputs)} calls of the model in one rollout and {len(expected.outputs)} in another",
            needed="calls that do not depend on what the model returns",
        )
    return [_deviation(a, b) for a, b in zip(found.outputs, expected.outputs, strict=True)]


def _deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(found) != len(expected):
        return float("inf")
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        error = float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
        worst = max(worst, error if error < float("inf") else float("inf"))
    return worst
