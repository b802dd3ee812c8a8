"""A folder of results. Files appear in it when all of them are finished; an interrupted run leaves none behind."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .errors import HeadforceError


class Folder:
    """Use as a context: files are written to `staging`, a folder for temporary files, and put into `path` by `publish`.

    Raises a refusal with `code` at once if nothing can be written at `path`.
    """

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        self.code = code

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
        shutil.rmtree(self.staging, ignore_errors=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Writes a JSON file."""
        (self.staging / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def publish(self) -> None:
        """Puts the files into place, each in one step: the two folders may be on different disks."""
        for file in sorted(path for path in self.staging.rglob("*") if path.is_file()):
            place = self.path / file.relative_to(self.staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            copied = place.parent / f".{file.name}.part"
            shutil.copyfile(file, copied)
            copied.replace(place)
