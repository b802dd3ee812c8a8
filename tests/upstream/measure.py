"""One repository run in four ways - as it is, and compiled with headforce - over two videos in a row.

And what is refused of it: the model when it is compiled with a policy and was not prepared; and whatever `prepare` does
not take.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import headforce
from headforce import HeadforceError
from headforce.kvpass.session import Session
from headforce.kvpass.torch_private import compile_in_place, compiled_in_place
from headforce.policy import Policy
from headforce.testing import peak

from .run import Family, Run

POLICY = """
headforce: 1
classes:
  static: sink(1) | window(1)
  dynamic: sink(1) | stride(3, phase=0, last=1) | window(1)
default: static
heads: {"0": {dynamic: [0]}, "1": {dynamic: [1, 2]}}
"""
SIDES = {
    "native(), owned": ("owned", Policy({})),
    "native(), view": ("view", Policy({})),
    "policy, owned": ("owned", Policy.loads(POLICY)),
}


@dataclass
class Side:
    """What came of one way to run the model.

    Attributes:
        difference: the largest difference from the unmodified videos over their largest value. held: bytes of K and V.
        graphs: compiled. late: graphs compiled for the second video. breaks: graph breaks. launches: of each layer
            with the newest caches, in videos. misses: launches without a policy. sites: of the graphs, by verdict.
    """

    name: str
    difference: float
    held: int
    graphs: int
    late: int
    breaks: int
    launches: list[float]
    misses: int
    sites: dict[str, int]


@dataclass
class Refusal:
    """What was raised: its code and text, and whether it names `prepare`."""

    code: str
    text: str
    prepare: bool


@dataclass
class Measured:
    """A repository's row: the bytes that it holds itself, all sides, and what `prepare` and a bare compile refuse."""

    family: str
    commit: str
    held: int
    sides: list[Side]
    prepared: Refusal | None
    bare: Refusal | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(family: Family, path: Path, commit: str, inner: str = "eager", target: str = "sdpa") -> Measured:
    """Runs all sides of one repository. The model of every side has the same weights."""
    run = _made(family, path, target)
    eager = _videos(run, family.chunks)
    held = _bytes(run)
    prepared, sides = _prepared(run), []
    bare = _bare(run)
    _check_restored(run, eager[0], family.chunks)
    for name, (mode, policy) in SIDES.items() if prepared is None else ():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        run = _made(family, path, target)
        with headforce.prepare(
            run.pipeline, policy, mode=mode, canonical_order=name[0] == "n", verify="plan"
        ) as session:
            session.compile(inner=inner, target=target)
            sides.append(_side(name, run, session, eager, family.chunks))
        _check_restored(run, eager[0])
    return Measured(family.name, commit, held, sides, prepared, bare)


def _made(family: Family, path: Path, target: str) -> Run:
    """Kernels are off by a rounding of bfloat16, so their model's attention is peaked: what a policy drops has to show
    above that."""
    run = family.make(path)
    if target != "sdpa":
        peak(run.model)
    return run


def _prepared(run: Run) -> Refusal | None:
    """What `prepare` refuses."""
    try:
        headforce.prepare(run.pipeline, Policy({})).restore()
    except HeadforceError as error:
        return Refusal(error.code, str(error), "prepare" in error.hint)
    return None


def _bare(run: Run) -> Refusal | None:
    """What is refused of a model that is compiled with a policy and was not prepared."""
    torch._dynamo.reset()
    policy, before = Policy.loads(POLICY.split("heads:")[0]), compiled_in_place(run.model)
    run.model.compile(backend="headforce", options={"policy": policy, "inner": "eager"})
    try:
        run.video(1, 2)
    except HeadforceError as error:
        return Refusal(error.code, str(error), "prepare" in error.hint)
    finally:
        compile_in_place(run.model, before)
    return None


def _videos(run: Run, chunks: int) -> list[Tensor]:
    return [run.video(seed, chunks) for seed in (1, 2)]


def _side(name: str, run: Run, session: Session, eager: list[Tensor], chunks: int) -> Side:
    first = run.video(1, chunks)
    graphs = session.report.graphs
    second = run.video(2, chunks)
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip((first, second), eager, strict=True)]
    newest = session.cache_sets[-1]  # some pipelines make their caches anew for every video
    report = session.report
    return Side(
        name=name,
        difference=max(errors),
        held=session.pool_bytes or _bytes(run),
        graphs=report.graphs,
        late=report.graphs - graphs,
        breaks=sum(torch._dynamo.utils.counters["graph_break"].values()),
        launches=[layer.launches / run.passes(chunks) for layer in newest.layers],
        misses=session.misses,
        sites={verdict: report.count(verdict) for verdict in ("rewritten", "refused", "excluded")},
    )


def _check_restored(run: Run, eager: Tensor, chunks: int = 1) -> None:
    """After a refusal, and after `restore()`, model and pipeline make the unmodified video, to the bit."""
    again = run.video(1, chunks)
    if not torch.equal(again, eager[:, : again.shape[1]]):
        raise AssertionError("headforce left something behind")


def _bytes(run: Run) -> int:
    return sum(cache[name].nbytes for cache in run.caches() for name in ("k", "v"))
