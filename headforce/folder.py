"""A folder of results. Files appear in it when all of them are finished; an interrupted run leaves none behind.

What must not be lost with such a run, as nobody could make it again soon, is kept by `Folder.rescue`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any

from .errors import HeadforceError

UNFINISHED = "unfinished"
"""The folder inside `Folder.path` for what is rescued, and with a number behind it for what is rescued later."""


class Folder:
    """Use as a context: files are written to `staging`, a folder for temporary files, and put into `path` by `publish`.

    Raises a refusal with `code` at once if nothing can be written at `path`.
    """

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        self.code = code
        self._outlives = False

    def check(self) -> None:
        """Raises if nothing can be written there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise HeadforceError(
                self.code, site="--out", found=f"{self.path}: {error.strerror}", needed="a folder that can be written"
            ) from error

    def __enter__(self) -> Folder:
        self.check()
        self.staging = Path(tempfile.mkdtemp(prefix="headforce-"))
        return self

    def __exit__(self, *_: object) -> None:
        if not self._outlives:
            shutil.rmtree(self.staging, ignore_errors=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Writes a JSON file."""
        (self.staging / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def publish(self) -> None:
        """Puts the files into place, each in one step: the two folders may be on different disks."""
        self._put(_files(self.staging), self.path)

    def rescue(self, names: Iterable[str]) -> Path | None:
        """Keeps some folders of `staging` when a run fails; where they are then, None if there is no file in them.

        That is a new folder inside `path`, so that results of an earlier run stay what they are, or `staging`, which is
        left behind if there is no room or no time for a copy.
        """
        files = [file for name in names for file in _files(self.staging / name)]
        if not files:
            return None
        self._outlives = True
        try:
            place = self._new_folder()
            self._put(files, place)
        except (OSError, KeyboardInterrupt):  # whoever rescues has an error to raise already
            return self.staging
        self._outlives = False
        return place

    def _new_folder(self) -> Path:
        names = chain([UNFINISHED], (f"{UNFINISHED}-{number}" for number in count(2)))
        place = next(place for name in names if not (place := self.path / name).exists())
        place.mkdir()
        return place

    def _put(self, files: Iterable[Path], folder: Path) -> None:
        for file in files:
            place = folder / file.relative_to(self.staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            copied = place.parent / f".{file.name}.part"
            shutil.copyfile(file, copied)
            copied.replace(place)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
