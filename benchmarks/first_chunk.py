"""How long something takes with everything that is compiled for it, in a process of its own.

It runs twice, with the same empty folder for the caches of Inductor and Triton: cold, and as a second process finds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "first chunk: "
"""What a line of a child begins with that says what came of it."""


def twice(script: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What a script of this folder says in a first and in a second process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
            "TRITON_CACHE_DIR": str(Path(folder) / "triton"),
        }
        return [_once(script, arguments, environment) for _ in range(2)]


def say(result: dict[str, Any]) -> None:
    """Reports to the process that asked."""
    print(MARK + json.dumps(result), flush=True)


def _once(script: str, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not said:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        return {"state": "failed", "reason": f"exit status {done.returncode}: {last}", "seconds": None}
    return json.loads(said[-1].removeprefix(MARK))
