"""The pictures of a run."""

from __future__ import annotations

from ..draw import save_bytes, save_reads
from ..folder import Folder
from .history import classes
from .measure import Measured

READS, BYTES = "reads.png", "bytes.png"


def draw_pictures(measured: Measured, folder: Folder) -> None:
    """Draws which frames are read and how many bytes are held, chunk by chunk."""
    history = measured.history
    save_reads(measured.policy, history.plans, folder.staging / READS)
    save_bytes(
        [plan.chunk.start for plan in history.plans],
        {name: history.used(cells) for name, cells in classes(measured.policy).items()},
        history.current,
        history.pool,
        measured.dense_bytes,
        folder.staging / BYTES,
    )
