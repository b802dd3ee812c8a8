"""`python -m tests.upstream.parity FORK CHECKOUT SELF_FORCING`: a fork's video against that of unmodified Self-Forcing
under the preset, with the fork's weights. What was measured is printed as JSON.

The fork runs in a process of its own, since both have packages of the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import headforce
from headforce import HeadforceError
from headforce.kvpass.session import Session
from headforce.policy import Policy
from headforce.presets import Labels, self_forcing
from headforce.testing import peak

from .forks import FORKS, PARITY, Fork, unmodified
from .run import Run

SEED, BLOCK = 1, 3
GROUPS = ("headgroup_first", "headgroup_mid", "headgroup_last")


@dataclass
class Parity:
    """One fork against the preset.

    Attributes:
        difference: chunk by chunk, the largest difference of the two videos over the largest value of the fork's.
        without: the same if every head reads the last 21 frames: what the policy changes.
        classified: whether heads were classified as in the fork; None where they were not classified.
        rewritten: sites. graphs: compiled. breaks: graph breaks.
        refused: the code with which `prepare` refuses the fork itself, empty where it takes it.
        instead: see `Fork`.
    """

    fork: str
    commit: str
    instead: str
    difference: list[float]
    without: list[float]
    classified: bool | None
    rewritten: int
    graphs: int
    breaks: int
    refused: str


def record(fork: Fork, path: Path, base: Path, to: Path) -> None:
    """The fork's part: its weights, its video and the classes of its heads, written to `to`."""
    run = fork.make(path, base, PARITY)
    peak(run.model)  # as a trained model's attention is, so that a frame which is missing shows
    video, caches = run.video(SEED, fork.chunks), run.caches()
    grouped = isinstance(caches[0], dict) and set(GROUPS) <= caches[0].keys()
    groups = [{name: cache[name] for name in GROUPS} for cache in caches] if grouped else None
    recorded = {"weights": run.model.state_dict(), "video": video, "groups": groups, "refused": _refused(run)}
    torch.save(recorded, to)


def _refused(run: Run) -> str:
    try:
        headforce.prepare(run.pipeline, Policy({})).restore()
    except HeadforceError as error:
        return error.code
    return ""


def compare(fork: Fork, commit: str, recorded: dict[str, Any], base: Path) -> Parity:
    """Unmodified Self-Forcing with the recorded weights, under the preset and under a plain window."""
    without, session = _under(self_forcing(), fork, recorded, base)
    session.restore()
    ours, session = _under(fork.policy(PARITY), fork, recorded, base)
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    labels = session.labels
    return Parity(
        fork=fork.name,
        commit=commit,
        instead=fork.instead,
        difference=_differences(ours, recorded["video"]),
        without=_differences(without, recorded["video"]),
        classified=None if labels is None else labels == Labels.from_dummy_forcing(recorded["groups"]),
        rewritten=session.report.count("rewritten"),
        graphs=session.report.graphs,
        breaks=breaks,
        refused=recorded["refused"],
    )


def _under(policy: Policy, fork: Fork, recorded: dict[str, Any], base: Path) -> tuple[Tensor, Session]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = unmodified(base)
    run.model.load_state_dict(recorded["weights"])
    session = headforce.prepare(run.pipeline, policy, verify="plan")
    session.compile(inner="eager", target="sdpa")
    return run.video(SEED, fork.chunks), session


def _differences(ours: Tensor, theirs: Tensor) -> list[float]:
    pairs = zip(ours.split(BLOCK, dim=1), theirs.split(BLOCK, dim=1), strict=True)
    return [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream.parity", description=__doc__)
    parser.add_argument("fork", choices=FORKS)
    parser.add_argument("checkout", type=Path, help="of the fork")
    parser.add_argument("self_forcing", type=Path, help="a checkout of Self-Forcing")
    parser.add_argument("--record", type=Path, help="run the fork alone and write what came of it here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    fork = FORKS[given.fork]
    if given.record:
        record(fork, given.checkout, given.self_forcing, given.record)
        return
    named = ["git", "-C", str(given.checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(named, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        to = Path(folder) / "recorded.pt"
        command = [
            "tests.upstream.parity",
            fork.name,
            str(given.checkout),
            str(given.self_forcing),
            "--record",
            str(to),
        ]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
        done = compare(fork, commit, torch.load(to), given.self_forcing)
    print(json.dumps(asdict(done), indent=1))


if __name__ == "__main__":
    main()
