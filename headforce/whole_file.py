"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one step, text as UTF-8.

    Whoever reads it meanwhile, or after an interruption, sees the old one or the new.

    Raises OSError, and leaves nothing behind then.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.chmod(file.name, 0o644)  # others may share the folder
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
