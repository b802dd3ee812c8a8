"""Progress of measuring, on standard error: videos, the passes of the running one, and the time that is left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Use as a context. How many passes a video takes is known once the first is finished.

    `silent`: draws nothing.
    """

    def __init__(self, silent: bool = False) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=silent,
        )
        self._passes = 0
        self._over = False

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, videos: int, finished: int) -> None:
        """`videos` are to be made, of which some are there."""
        self._videos = self._bars.add_task("videos", total=videos, completed=finished)
        self._running = self._bars.add_task("passes", total=None)

    def advance(self) -> None:
        """A pass of the model begins."""
        if self._over:
            self._bars.reset(self._running, total=self._passes)
            self._passes, self._over = 0, False
        self._passes += 1
        self._bars.advance(self._running)

    def finished(self) -> None:
        """One video is done; the next is taken to be as long."""
        self._bars.advance(self._videos)
        self._over = True
