"""How much is checked while a model runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ...errors import HeadforceError

OFF, PLAN, SITE, FULL = LEVELS = ("off", "plan", "site", "full")
LEVEL_VARIABLE, FOLDER_VARIABLE = "HEADFORCE_VERIFY", "HEADFORCE_FAILURES"


@dataclass(frozen=True)
class Verification:
    """What is checked, each level with all before it.

    Attributes:
        level: "off"; "plan": every plan against the oracle and every table against its plan, exactly (V1); "site": what
            targets compute against attention in float64, on some query rows of every read (V3); "full": on all rows,
            and that pages hold what was last written for their frame.
        every: launches of a layer from one that is looked at to the next, for "site".
        folder: where failures are written to; None writes none.
    """

    level: str = OFF
    every: int = 1
    folder: Path | None = Path("headforce-failures")

    @staticmethod
    def of(level: str | None, every: int = 1) -> Verification:
        """As asked for, or as `HEADFORCE_VERIFY` says; failures go to `HEADFORCE_FAILURES`. HF-OPTION for others."""
        found = level if level is not None else os.environ.get(LEVEL_VARIABLE) or OFF
        if found not in LEVELS:
            where = "verify" if level is not None else LEVEL_VARIABLE
            raise HeadforceError("HF-OPTION", site=where, found=repr(found), needed=" or ".join(LEVELS))
        if not isinstance(every, int) or every < 1:
            raise HeadforceError("HF-OPTION", site="every", found=repr(every), needed="a number of launches, 1 or more")
        folder = os.environ.get(FOLDER_VARIABLE)
        return Verification(found, every, Path(folder) if folder else Verification.folder)

    @property
    def plans(self) -> bool:
        """Whether plans and tables are checked."""
        return self.level != OFF

    @property
    def launches(self) -> bool:
        """Whether operators are watched while they run."""
        return self.level in (SITE, FULL)

    @property
    def whole(self) -> bool:
        """Whether all rows are looked at, and what pages hold."""
        return self.level == FULL
