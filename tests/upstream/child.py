"""What the tests of checkouts have in common: where checkouts are, and a process for each, as several have packages of
the same name."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = os.environ.get("HEADFORCE_UPSTREAM", "")

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="the checkouts need diffusers and einops"
)


def checkout_of(name: str) -> Path:
    """The folder of a checkout; the test is skipped where there is none."""
    path = Path(CHECKOUTS) / name
    if not CHECKOUTS or not path.is_dir():
        pytest.skip(f"HEADFORCE_UPSTREAM names no folder with a checkout {name}")
    return path


def printed_by(module: str, *arguments: str) -> Any:
    """The JSON that `python -m module` prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=900, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
