"""What became of the models of one process, in numbers that outlive them."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..kvpass.session import Session
    from ..policy import Chunk

SAVE_EVERY = 2.0
"""Seconds between two writes of a record, so that one is there if the process is killed."""
VERDICTS = ("rewritten", "refused", "excluded")


@dataclass
class ModelRecord:
    """One model.

    Attributes:
        name: its class. passes: calls with a cache. launches: of all layers.
        held, dense: bytes of K and V in our pools, and of the model's own caches, when most were held.
        graphs, sites: of the session's report. misses: launches without the policy, in view mode.
        videos: for each video the frames of its chunks. refusal: why a pass was refused, if one was.
    """

    name: str
    passes: int = 0
    launches: int = 0
    held: int = 0
    dense: int = 0
    graphs: int = 0
    sites: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    misses: int = 0
    videos: list[list[int]] = field(default_factory=list)
    refusal: str = ""

    def ran(self, session: Session, launches: int) -> None:
        """A pass is over. `launches`: of all layers, so far."""
        self.passes += 1
        self.launches = launches
        self.misses = session.misses
        self.graphs = session.report.graphs
        self.sites = {verdict: session.report.count(verdict) for verdict in VERDICTS}
        self.held, self.dense = max((self.held, self.dense), (session.pool_bytes, dense_bytes(session)))
        caches = session.cache_sets[-1] if session.cache_sets else None
        if caches is not None and caches.chunk is not None and not caches.again:
            self.see(replace(caches.chunk, start=caches.chunk.start + caches.origin))

    def see(self, chunk: Chunk) -> None:
        """The running chunk: the next one of a video, or the first of another. Chunks that run again count once."""
        end = sum(self.videos[-1]) if self.videos else 0
        if chunk.start == 0 and self.videos[-1:] != [[chunk.frames]]:
            self.videos.append([chunk.frames])
        elif chunk.start == end and end:
            self.videos[-1].append(chunk.frames)


def dense_bytes(session: Session) -> int:
    """Bytes of the caches as the model makes them, of all streams; of an owned cache, of what its shells stand for."""
    held = (cache for caches in session.cache_sets for cache in caches.caches)
    return sum(tensor.nbytes for cache in held for tensor in cache.tensors())


class ProcessRecord:
    """All models of this process, written as JSON into `folder`.

    Attributes:
        models: those of known families. called: classes of other models that were called. compiled: classes that the
            script compiled itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved = 0.0
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.models: list[ModelRecord] = []
        self.called: dict[str, None] = {}
        self.compiled: dict[str, None] = {}

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        from torch._dynamo.utils import counters

        return {
            "pid": os.getpid(),
            "python": sys.executable,
            "argv": sys.argv,
            "breaks": sum(counters["graph_break"].values()),
            "models": [asdict(model) for model in self.models],
            "called": list(self.called),
            "compiled": list(self.compiled),
        }

    def save_sometimes(self) -> None:
        """Saves, unless that was done a moment ago."""
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Writes the record, in one step; helpers that called no module, such as compilers' workers, have none."""
        seen = self.models or self.called or self.compiled
        if not seen or not self.folder.is_dir():  # the folder goes with the command
            return
        self._saved = time.monotonic()
        path = self.folder / f"{os.getpid()}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self.to_json()), encoding="utf-8")
        part.replace(path)
