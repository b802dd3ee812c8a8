"""One side of `authors.py`, in a process of its own, as checkouts have packages of the same names."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import headforce
from headforce.testing import peak
from tests.upstream.forks import FORKS, unmodified
from tests.upstream.run import Run, Scale

UNMODIFIED, AUTHORS, COMPILED, OURS = "Self-Forcing", "the authors' code", "the same, compiled", "headforce"


@dataclass(frozen=True)
class Race:
    """What all sides have in common.

    Attributes:
        fork: its name in `tests.upstream.forks`. checkout: of it. base: a checkout of Self-Forcing.
        weights: a file that the authors' side writes, and the others read.
        inner, target: options of headforce. threads: of torch on a CPU.
    """

    fork: str
    checkout: Path
    base: Path
    scale: Scale
    weights: Path
    inner: str
    target: str | None
    threads: int


def serve(name: str, race: Race, parent: Connection) -> None:
    """Makes a side and then, for every seed and number of chunks that the parent sends, a video.

    It says "ready", or a string with what failed. Of a video it waits for a word before each chunk and answers with the
    seconds that the chunk took, from its first pass until the device is idle behind its last. Behind the video comes a
    dict: `video` [frames, ...], `held`, the bytes of the caches between passes, and `peak`, of everything on a GPU.
    """
    sys.stdout = io.StringIO()  # pipelines print what they do
    try:
        torch.set_num_threads(race.threads)
        run = _run(name, race)
        turns = _Turns(parent, run.passes(1), torch.device(race.scale.device))
        run.pipeline.generator.register_forward_pre_hook(turns.before)
        run.pipeline.generator.register_forward_hook(turns.behind)
        session = _prepared(run, race) if name == OURS else None
        if name == COMPILED:
            run.model.compile()
        parent.send("ready")
        while (asked := parent.recv()) is not None:
            video = run.video(*asked)
            turns.tell()
            held = session.pool_bytes if session else _bytes(run.caches())
            parent.send({"video": video[0].float().cpu().numpy(), "held": held, "peak": _peak(race.scale.device)})
    except Exception as error:  # whatever it is, the other sides go on
        parent.send(f"{type(error).__name__}: {str(error).strip()}")


def _run(name: str, race: Race) -> Run:
    if name not in (AUTHORS, COMPILED):
        run = unmodified(race.base, race.scale)
    else:
        run = FORKS[race.fork].make(race.checkout, race.base, race.scale)
    if name == AUTHORS:
        peak(run.model)
        torch.save(run.model.state_dict(), race.weights)
    else:
        run.model.load_state_dict(torch.load(race.weights, map_location=race.scale.device))
    return run


def _prepared(run: Run, race: Race) -> Any:
    """The session of the run, whose model is compiled and, on a GPU, captured."""
    session = headforce.prepare(run.pipeline, FORKS[race.fork].policy(race.scale))
    captured = race.scale.device != "cpu"
    session.compile(blocks="blocks", inner=race.inner, target=race.target, cudagraphs=captured)
    return session


class _Turns:
    """Waits before each chunk until it is this side's turn."""

    def __init__(self, parent: Connection, passes: int, device: torch.device) -> None:
        """`passes`: of a chunk."""
        self.parent, self.passes, self.device = parent, passes, device
        self.seen, self.begun, self.spent = 0, 0.0, None

    def before(self, *_: Any) -> None:
        if self.seen % self.passes == 0:
            self.tell()
            self.parent.recv()
            self.begun = self._now()

    def behind(self, *_: Any) -> None:
        self.seen += 1
        if self.seen % self.passes == 0:
            self.spent = self._now() - self.begun

    def tell(self) -> None:
        """How long the last chunk took, once all that its pipeline does behind it is done."""
        if self.spent is not None:
            self._now()
            self.parent.send(self.spent)
            self.spent = None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _bytes(caches: Any) -> int:
    """What all tensors hold that can be reached from caches, whatever these are made of."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(caches, set())}
    return sum(storages.values())


def _tensors(of: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(of) in seen:
        return
    seen.add(id(of))
    if isinstance(of, Tensor):
        yield of
        return
    inside = of if isinstance(of, dict) else vars(of) if hasattr(of, "__dict__") else {}
    for thing in of if isinstance(of, list | tuple) else inside.values():
        yield from _tensors(thing, seen)


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device != "cpu" else None
