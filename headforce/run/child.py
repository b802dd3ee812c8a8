"""What happens in a process of the script once it has imported torch."""

from __future__ import annotations

import atexit
import os
import random
from pathlib import Path

import numpy as np
import torch

from .record import ProcessRecord
from .settings import RunSettings
from .watcher import Watcher


def begin() -> None:
    """Seeds what makes random numbers, and watches models until the process ends."""
    settings = RunSettings.from_environment()
    if settings.seed is not None:
        seed_all(settings.seed)
    record = ProcessRecord(Path(settings.records))
    Watcher(settings, record).install()
    atexit.register(record.save)
    # A forked worker has seen nothing yet; what was counted before is the parent's to report.
    os.register_at_fork(after_in_child=record.clear)


def seed_all(seed: int) -> None:
    """The script may still set seeds of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
