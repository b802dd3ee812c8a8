"""`HEADFORCE_LOGS`: what headforce says while it compiles and runs, by name and level as in `TORCH_LOGS`.

    HEADFORCE_LOGS=sites            every attention call of every graph, and what became of it
    HEADFORCE_LOGS=plan,+graphs     what heads read, chunk by chunk; and graphs, with their code (+ is debug)
    HEADFORCE_LOGS=all

The loggers are Python's own, `headforce.sites` and so on, so `TORCH_LOGS=+headforce` and `logging` set them too.
"""

from __future__ import annotations

import logging
import os

from .errors import HeadforceError, nearest

VARIABLE = "HEADFORCE_LOGS"
NAMES = ("sites", "plan", "graphs")
ALL = "all"

ROOT = logging.getLogger("headforce")
SITES, PLAN, GRAPHS = (logging.getLogger(f"headforce.{name}") for name in NAMES)

_LEVELS = {"+": logging.DEBUG, "-": logging.ERROR}
_applied: str | None = None


def configure(setting: str | None = None) -> None:
    """Sets the levels that `setting` names, or the environment variable. Does nothing if that was done before.

    Messages go to stderr, unless somebody has said where they go. Raises HF-OPTION for a name that there is not.
    """
    global _applied
    setting = os.environ.get(VARIABLE, "") if setting is None else setting
    if setting == (_applied or ""):
        return
    levels = _read(setting)
    for logger in (ROOT, SITES, PLAN, GRAPHS):
        logger.setLevel(levels.get(logger, logging.NOTSET))
    if levels and not ROOT.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        ROOT.addHandler(handler)
    _applied = setting


def _read(setting: str) -> dict[logging.Logger, int]:
    loggers = {ALL: ROOT, **dict(zip(NAMES, (SITES, PLAN, GRAPHS), strict=True))}
    levels = {}
    for word in filter(None, (word.strip() for word in setting.split(","))):
        name = word.lstrip("+-")
        if name not in loggers:
            raise HeadforceError(
                "HF-OPTION",
                site=VARIABLE,
                found=f"{name!r}{nearest(name, loggers)}",
                needed=", ".join(loggers) + ", each with + for debug or - for errors alone",
            )
        levels[loggers[name]] = _LEVELS.get(word[0], logging.INFO)
    return levels
