"""The code that the authors of a system published, against headforce with its preset on unmodified Self-Forcing.

    PYTHONPATH=. python benchmarks/authors.py FORK CHECKOUT SELF_FORCING [--device cuda --grid 30x52 --layers 30]

FORK is a name of `tests/upstream/forks.py`, which says what of its code is replaced. All sides have the same weights,
make the same video with their own pipelines and run in turn, chunk by chunk, each in a process of its own. What counts
are the last five chunks of the second video. A chunk is from its first pass to its last, the sampler between them
included; text encoder and VAE are stand-ins.

    over ...     how many times faster than that side
    slowest      slowest over median of the chunks that count
    held         MiB of all tensors that the caches of self-attention hold between passes
    difference   the largest of a chunk from the authors' video, over the largest value of that chunk

On a CPU only ratios are reported. The default size is a small frame and a small feed-forward, so that dense attention
has more than half of the FLOPs, as at 480p.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from authors_side import AUTHORS, COMPILED, OURS, UNMODIFIED, Race, serve
from report import aligned, caption, facts, ratio, write

from tests.upstream.forks import FORKS
from tests.upstream.run import Scale

WARM, COUNTED, BLOCK, SEED = 9, 5, 3, 1
"""Chunks of the first video, which evicts; those of the second that count, its last; frames of a chunk."""


@dataclass
class Side:
    """A side as its parent sees it."""

    name: str
    ears: Connection
    process: Any
    seconds: list[float] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    def tell(self, what: Any) -> None:
        """A side that has ended does not hear it, and `hear` says why."""
        with contextlib.suppress(BrokenPipeError):
            self.ears.send(what)

    def hear(self) -> Any:
        """What it says next; None once it has failed."""
        try:
            said = self.ears.recv()
        except (EOFError, OSError):
            said = "its process ended"
        if isinstance(said, str) and said != "ready":
            self.failed = said
            return None
        return said


def started(name: str, race: Race) -> Side:
    """A side that is ready, or failed."""
    spawn = multiprocessing.get_context("spawn")
    ears, mouth = spawn.Pipe()
    process = spawn.Process(target=serve, args=(name, race, mouth), daemon=True)
    process.start()
    mouth.close()
    side = Side(name, ears, process)
    side.hear()
    return side


def video(sides: Sequence[Side], chunks: int) -> None:
    """One video of every side that has not failed, chunk by chunk in turn."""
    for side in sides:
        side.tell((SEED, chunks))
        side.seconds = []
    for _ in range(chunks):
        for side in sides:
            if not side.failed:
                side.tell("go")
                seconds = side.hear()
                if seconds is not None:
                    side.seconds.append(seconds)
    for side in sides:
        if not side.failed:
            side.told = side.hear() or {}


def run(race: Race, chunks: int, compiled: bool) -> list[Side]:
    """Two videos of all sides, the second with so many chunks. `compiled`: whether the authors' model runs under
    torch.compile as well."""
    theirs = started(AUTHORS, race)  # writes the weights of all
    names = (UNMODIFIED, *([COMPILED] if compiled else []), OURS)
    unmodified, *others = (started(name, race) for name in names)
    sides = [unmodified, theirs, *others]
    for length in (WARM, chunks):
        video([side for side in sides if not side.failed], length)
    for side in sides:
        side.tell(None)
    return sides


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of two videos [frames, ...], see above."""
    blocks = range(0, len(theirs), BLOCK)
    return max(
        float(abs(ours[i : i + BLOCK] - theirs[i : i + BLOCK]).max() / abs(theirs[i : i + BLOCK]).max()) for i in blocks
    )


def results(sides: Sequence[Side]) -> dict[str, dict[str, Any]]:
    """What came of each side."""
    videos = {side.name: side.told.pop("video") for side in sides if not side.failed}
    found: dict[str, dict[str, Any]] = {}
    for side in sides:
        if side.failed:
            found[side.name] = {"state": "failed", "reason": side.failed}
            continue
        counted = side.seconds[-COUNTED:]
        median = statistics.median(counted)
        found[side.name] = {"state": "ok", "seconds": side.seconds, "median": median, **side.told}
        found[side.name]["slowest"] = max(counted) / median
        if AUTHORS in videos:
            found[side.name]["difference"] = difference(videos[side.name], videos[AUTHORS])
    return found


def table(found: dict[str, dict[str, Any]], timed: bool) -> str:
    """`timed`: with the time of a chunk."""
    over = [UNMODIFIED, AUTHORS]
    rows = [
        ["", *(["chunk ms"] if timed else []), *(f"over {name}" for name in over), "slowest", "held MiB", "difference"]
    ]
    for name, of in found.items():
        if of["state"] != "ok":
            rows.append([name, *[""] * (len(rows[0]) - 2), f"{of['state']}: {of['reason'].splitlines()[0]}"])
            continue
        ratios = [ratio(found[other].get("median"), of["median"]) for other in over]
        rows.append(
            [
                name,
                *([f"{of['median'] * 1e3:.1f}"] if timed else []),
                *("" if r is None else f"{r:.2f}" for r in ratios),
                f"{of['slowest']:.2f}",
                f"{of['held'] / 2**20:.1f}",
                f"{of['difference']:.1e}" if "difference" in of else "",
            ]
        )
    return aligned(rows)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fork", choices=FORKS)
    parser.add_argument("checkout", type=Path, help="of the fork")
    parser.add_argument("self_forcing", type=Path, help="a checkout of Self-Forcing")
    parser.add_argument("--device", default="cpu", help="cpu (float32) or cuda (bfloat16)")
    parser.add_argument("--grid", default="16x24", help="rows and columns of tokens in a frame; 480p has 30x52")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ffn", type=int, default=256, help="channels of the feed-forward; Wan 1.3B has 8960")
    parser.add_argument("--noisy", type=int, default=4, help="noisy passes of a chunk, in front of the clean one")
    parser.add_argument("--chunks", type=int, default=12, help="of the video that counts")
    parser.add_argument("--inner", default="inductor", help="the compiler inside headforce")
    parser.add_argument("--target", help="of headforce")
    parser.add_argument("--compile", action="store_true", help="run the authors' model under torch.compile as well")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/authors.json"))
    options = parser.parse_args(given)
    rows, _, columns = options.grid.partition("x")
    on_cpu = options.device == "cpu"
    scale = Scale(
        options.layers,
        (int(rows), int(columns)),
        options.ffn,
        tuple(1000 - 1000 * step // options.noisy for step in range(options.noisy)),
        options.device,
        torch.float32 if on_cpu else torch.bfloat16,
    )
    with tempfile.TemporaryDirectory() as folder:
        race = Race(
            fork=options.fork,
            checkout=options.checkout.resolve(),
            base=options.self_forcing.resolve(),
            scale=scale,
            weights=Path(folder) / "weights.pt",
            inner=options.inner,
            target=options.target,
            threads=options.threads,
        )
        sides = run(race, options.chunks, compiled=options.compile)
    found = results(sides)
    report = {"version": 1, "machine": facts(torch.device(options.device)), "fork": options.fork, "sides": found}
    report["settings"] = {
        **asdict(scale),
        "dtype": str(scale.dtype),
        "chunks": options.chunks,
        "threads": options.threads,
    }
    write(report, options.out)
    print(f"{options.fork}: {FORKS[options.fork].instead or 'as published'}")
    print(table(found, timed=not on_cpu))
    print(caption(report["machine"]))
    return 0 if all(of["state"] == "ok" for of in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
