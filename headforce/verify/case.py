"""A rollout that can be checked again: what is run, how, and for which of the runs of `headforce verify`."""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..calls import Example, find_beside_user, load_example
from ..policy import Policy
from .fewer_calls import only_calls
from .rollout import SEED, Way, most_sites
from .verdict import RUNS, Verdict, verify

CASE, POLICY_FILE = "case.json", "policy.yaml"
JSON_VERSION = 1

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """What `headforce verify` was asked, or less of it.

    Attributes:
        example: the target that names the model and its calls.
        way, policy, limit: as in `verify`.
        modules: what is imported first, such as a module with a target.
        sizes: arguments of the target's function that differ from its defaults, as (name, value).
        calls: the numbers of the calls that are made; None for all.
        sites: only so many sites of a graph run on the target, the others the reference; None for all.
        runs: those that are made, of `verdict.RUNS`.
    """

    example: str
    way: Way = field(default_factory=Way)
    policy: Policy | None = None
    limit: float | None = None
    modules: tuple[str, ...] = ()
    sizes: tuple[tuple[str, Size], ...] = ()
    calls: tuple[int, ...] | None = None
    sites: int | None = None
    runs: tuple[str, ...] = RUNS

    def made(self) -> Example:
        """Makes the example, with the same random numbers every time. Raises HF-EXAMPLE."""
        find_beside_user()
        for name in self.modules:
            importlib.import_module(name)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(SEED)
            return only_calls(load_example(self.example, dict(self.sizes)), self.calls)

    def verdict(self) -> Verdict:
        """Runs it and checks it. Raises HF-ADAPTER and HF-EXAMPLE."""
        made = self.made()
        with most_sites(self.sites):
            return verify(made, self.policy, self.way, self.limit, self.runs)

    def with_size(self, name: str, value: Size) -> Case:
        """The case with another argument for the target's function."""
        return replace(self, sizes=tuple(sorted({**dict(self.sizes), name: value}.items())))

    # --- in a folder ----------------------------------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """What `load` reads."""
        numbers: dict[str, Any] = {
            "version": JSON_VERSION,
            "example": self.example,
            "mode": self.way.mode,
            "target": self.way.target,
            "inner": self.way.inner,
            "limit": self.limit,
            "modules": self.modules,
            "sizes": dict(self.sizes),
            "calls": self.calls,
            "sites": self.sites,
            "runs": self.runs,
        }
        policy = {} if self.policy is None else {POLICY_FILE: self.policy.dumps().encode()}
        return {CASE: (json.dumps(numbers, indent=1) + "\n").encode(), **policy}

    @property
    def digest(self) -> str:
        """The same for the same case."""
        return hashlib.sha256(b"".join(self.files().values())).hexdigest()[:12]

    @staticmethod
    def load(folder: Path) -> Case:
        """A case that was written. What fails in it leaves no folder of its own."""
        found = json.loads((folder / CASE).read_text(encoding="utf-8"))
        policy = folder / POLICY_FILE
        return Case(
            example=found["example"],
            way=Way(mode=found["mode"], target=found["target"], inner=found["inner"], writes=False),
            policy=Policy.load(policy) if policy.exists() else None,
            limit=found["limit"],
            modules=tuple(found["modules"]),
            sizes=tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in found["sizes"].items()),
            calls=None if found["calls"] is None else tuple(found["calls"]),
            sites=found["sites"],
            runs=tuple(found["runs"]),
        )
