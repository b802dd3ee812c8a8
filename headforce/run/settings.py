"""What is done to the models of a script, and how its processes are told."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

VARIABLE = "HEADFORCE_RUN"
"""The environment variable that carries the settings to every process of the command."""
BOOTSTRAP = Path(__file__).parent / "bootstrap"
EAGER = "eager"
"""The mode in which models are only watched, the other side of a comparison."""


@dataclass(frozen=True)
class RunSettings:
    """How the models of a script are prepared and compiled; see `headforce.prepare` and docs/usage.md for the values.

    Attributes:
        policy: a policy file, or the name of a published system. labels: its label file.
        mode: "owned", "view", or "eager": watched and left as they are.
        target, inner, verify: None leaves it to the compiler, and to `prepare`.
        seed: of `random`, numpy and torch when the script begins; None leaves them alone.
        records: the folder into which processes write what became of their models.
    """

    policy: str
    labels: str | None = None
    mode: str = "owned"
    target: str | None = None
    inner: str | None = None
    verify: str | None = None
    seed: int | None = None
    records: str = ""

    def checked(self) -> RunSettings:
        """The same with absolute paths, since scripts change their folder.

        Raises what `read_policy` raises, and HF-TARGET and HF-OPTION for what would be refused in the script.
        """
        from ..choices import check_choices
        from ..presets.named import names_file, read_policy  # not in every process of the command

        read_policy(self.policy, self.labels)
        check_choices(target=self.target, inner=self.inner, verify=self.verify)
        policy = os.path.abspath(self.policy) if names_file(self.policy) else self.policy
        return replace(self, policy=policy, labels=self.labels and os.path.abspath(self.labels))

    @property
    def options(self) -> dict[str, str]:
        """The options of `Session.compile`."""
        return {name: value for name in ("target", "inner") if (value := getattr(self, name)) is not None}

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` for a process whose models are to be watched."""
        added = {VARIABLE: json.dumps(asdict(self))}
        added["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BOOTSTRAP), base.get("PYTHONPATH")]))
        if self.seed is not None:
            added["PYTHONHASHSEED"] = base.get("PYTHONHASHSEED") or str(self.seed % 2**32)
        return {**base, **added}

    @staticmethod
    def from_environment() -> RunSettings:
        """The settings of this process."""
        return RunSettings(**json.loads(os.environ[VARIABLE]))
