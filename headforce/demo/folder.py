"""The folder of results. Files appear in it when all of them are finished; an interrupted run leaves none behind."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..errors import HeadforceError


class Folder:
    """Use as a context: files are written to `staging` and moved to `path` by `publish`.

    Raises HF-DEMO at once if nothing can be written at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Folder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=self.path))
        except OSError as error:
            raise HeadforceError(
                "HF-DEMO", site="--out", found=f"{self.path}: {error.strerror}", needed="a folder that can be written"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Writes a JSON file."""
        (self.staging / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def publish(self) -> None:
        """Moves the files into place, each in one step."""
        for file in sorted(self.staging.iterdir()):
            file.replace(self.path / file.name)
