"""Choosing tiles by measuring them: what `headforce tune` does, on the device that is there.

Nothing is tuned while a model runs. A configuration counts only if it computes within the accuracy that every target
owes; of those the fastest is written to `kernels/tuning.json`, which is read from then on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from ..errors import HeadforceError, nearest
from ..kernels.budget import Budget, budget_of
from ..kernels.config import TUNING, Config, architecture_of, candidates, tuning_entry
from ..kernels.rotation import INTERLEAVED
from ..whole_file import write_whole
from .attention import HOPPER, HOPPER_WIDTHS, PORTABLE, attention

SAMPLED = 8
"""Query rows of each head that are compared with attention in float64."""


@dataclass(frozen=True)
class Problem:
    """One layer at one chunk: `heads` heads of `width` columns, of which a third reads `far` frames, the rest `near`.

    Every head reads its first frame at another position, as a policy with a sink does that moves along.
    """

    heads: int = 12
    tokens: int = 1560
    width: int = 128
    far: int = 21
    near: int = 6
    chunk: int = 3
    dtype: torch.dtype = torch.bfloat16

    def arguments(self, device: torch.device) -> tuple[Any, ...]:
        """The arguments of `attention`, on random data. Unread rows hold NaN."""
        generator = torch.Generator(device).manual_seed(0)
        rows, queries = self.tokens * self.far, self.tokens * self.chunk
        shape: dict[str, Any] = {"dtype": self.dtype, "device": device, "generator": generator}
        query = torch.randn((1, queries, self.heads, self.width), **shape)
        key, value = (torch.randn((self.heads * self.far, self.tokens, self.width), **shape) for _ in range(2))
        reads: list[list[int]] = []
        runs: list[list[int]] = []
        for head in range(self.heads):
            frames = self.far if head % 3 == 0 else self.near
            first = head * rows
            reads.append([0, head, 0, queries, len(runs), 2, 1, 0])
            runs += [[first, self.tokens, 5], [first + self.tokens, (frames - 1) * self.tokens, 0]]
            key[head * self.far + frames : (head + 1) * self.far] = torch.nan
            value[head * self.far + frames : (head + 1) * self.far] = torch.nan
        tables = [torch.tensor(table, dtype=torch.int32, device=device) for table in (reads, runs)]
        pairs = self.width // 6
        theta = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
        return query, key, value, *tables, theta, 0, INTERLEAVED, self.width**-0.5


@dataclass(frozen=True)
class Trial:
    """One configuration: its time in milliseconds, or why it does not count."""

    config: Config
    ms: float | None
    refused: str = ""


def tune(
    kernel: str, architecture: str, problem: Problem, device: torch.device, clock: Callable[[Callable[[], Any]], float]
) -> list[Trial]:
    """Tries every candidate on one problem, the fastest first.

    Args:
        clock: the time of a call in milliseconds.
    """
    arguments = problem.arguments(device)
    budget, sampled = _budget(arguments)
    trials = []
    for config in candidates(kernel, architecture, problem.width, problem.dtype):

        def run(config: Config = config) -> Tensor:
            return attention(*arguments, kernel=kernel, config=config)[0]

        try:
            error = budget.error(run()[:, sampled])
        except (HeadforceError, TritonError) as failure:  # it does not fit, or does not compile
            trials.append(Trial(config, None, str(failure).splitlines()[0]))
            continue
        if error > budget.limit:
            trials.append(Trial(config, None, f"error {error:.1e}, of {budget.limit:.1e} that is allowed"))
            continue
        trials.append(Trial(config, clock(run)))
    return sorted(trials, key=lambda trial: float("inf") if trial.ms is None else trial.ms)


def problems(kernel: str) -> Iterator[Problem]:
    """What is measured for a kernel: one problem for each dtype and head dim that models have."""
    for dtype in (torch.bfloat16, torch.float16, *([torch.float32] if kernel == PORTABLE else [])):
        for width in HOPPER_WIDTHS:
            yield Problem(width=width, dtype=dtype)


@dataclass(frozen=True)
class Wanted:
    """What is tuned: kernels, dtypes by name and head dims. An empty tuple is all of them.

    Raises HF-OPTION for what is never measured, and where no kernel that is wanted takes a dtype that is.
    """

    kernels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        every = [_named(kernel, problem) for kernel in (PORTABLE, HOPPER) for problem in problems(kernel)]
        for site, names, known in zip(
            ("kernel", "dtype", "head-dim"), self._asked, zip(*every, strict=True), strict=True
        ):
            _check_known(site, names, list(dict.fromkeys(map(str, known))))
        if not any(one in self for one in every):
            raise _refusal("", ", ".join(str(name) for names in self._asked for name in names), "a dtype that it takes")

    @property
    def _asked(self) -> tuple[tuple[Any, ...], ...]:
        return self.kernels, self.dtypes, self.widths

    def __contains__(self, named: tuple[str, str, int]) -> bool:
        return all(not names or name in names for name, names in zip(named, self._asked, strict=True))

    def of(self, kernel: str) -> Iterator[Problem]:
        """The problems of a kernel that are wanted."""
        return (problem for problem in problems(kernel) if _named(kernel, problem) in self)


def _check_known(site: str, names: tuple[Any, ...], known: list[str]) -> None:
    for name in map(str, names):
        if name not in known:
            raise _refusal(site, f"{name}{nearest(name, known)}", ", ".join(known))


def _refusal(site: str, found: str, needed: str) -> HeadforceError:
    return HeadforceError("HF-OPTION", site=site, found=found, needed=needed, hint="See `headforce tune -h`.")


def _named(kernel: str, problem: Problem) -> tuple[str, str, int]:
    return kernel, str(problem.dtype).removeprefix("torch."), problem.width


def tune_device(
    device: torch.device, clock: Callable[[Callable[[], Any]], float], wanted: Wanted
) -> Iterator[tuple[str, Problem, list[Trial]]]:
    """Every kernel that is wanted, over its problems. Raises HF-KERNEL if the device runs none of them."""
    architecture = architecture_of(device)
    runs = (PORTABLE, HOPPER) if architecture == "sm90" else (PORTABLE,)
    found = [(kernel, problem) for kernel in runs for problem in wanted.of(kernel)]
    if not found:
        raise HeadforceError("HF-KERNEL", found=f"{HOPPER} on {architecture}", needed="sm90 (H100, H200)")
    for kernel, problem in found:
        yield kernel, problem, tune(kernel, architecture, problem, device, clock)


def record(kernel: str, architecture: str, problem: Problem, best: Trial, where: str, path: Path = TUNING) -> None:
    """Writes the fastest configuration of a problem into the table, in place of what it said of the same kernel."""
    measured = {"ms": round(best.ms or 0.0, 4), "on": where, "heads": problem.heads, "tokens": problem.tokens}
    entry = tuning_entry(kernel, architecture, problem.dtype, problem.width, best.config, measured)
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"entries": []}
    same = ("kernel", "architecture", "dtype", "width")
    kept = [e for e in table["entries"] if any(e[name] != entry[name] for name in same)]
    table["entries"] = sorted([*kept, entry], key=lambda e: [str(e[name]) for name in same])
    write_whole(path, json.dumps(table, indent=2) + "\n")


def _budget(arguments: tuple[Any, ...]) -> tuple[Budget, Tensor]:
    """What some query rows of the problem owe, and which rows these are."""
    query, key, value, reads, *rest = arguments
    rows = torch.linspace(0, query.shape[1] - 1, SAMPLED, device=query.device).long()
    some = reads.clone()
    some[:, 3] = SAMPLED
    return budget_of(query[:, rows], key, value, some, *rest), rows
