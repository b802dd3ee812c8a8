"""Progress bars on standard error: one for each side, with the time that is left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Use as a context. Nothing is drawn before `begin`."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("passes"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, titles: Sequence[str], passes: int) -> None:
        """All sides together, then each of `titles`, is going to take `passes` passes."""
        self._tasks[""] = self._bars.add_task("all", total=passes * len(titles))
        for title in titles:
            self._tasks[title] = self._bars.add_task(title, total=passes)

    def advance(self, title: str) -> None:
        """One pass of one side is done."""
        for name in ("", title):
            self._bars.advance(self._tasks[name])
