"""Every fork whose checkout is at hand: HEADFORCE_UPSTREAM names a folder with them and with Self-Forcing's."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .forks import FORKS

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = os.environ.get("HEADFORCE_UPSTREAM", "")


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the checkouts need diffusers and einops")
@pytest.mark.parametrize("name", FORKS)
def test_the_policy_computes_what_the_fork_computes(name: str) -> None:
    """On unmodified Self-Forcing, with the fork's weights, up to the rounding of float32; and it matters."""
    checkout, base = (Path(CHECKOUTS) / folder for folder in (FORKS[name].checkout, "self-forcing"))
    if not CHECKOUTS or not checkout.is_dir() or not base.is_dir():
        pytest.skip(f"HEADFORCE_UPSTREAM names no folder with checkouts {checkout.name} and self-forcing")
    done = subprocess.run(
        [sys.executable, "-m", "tests.upstream.parity", name, str(checkout), str(base)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["refused"] == FORKS[name].refused
    assert row["rewritten"] > 0
    assert row["breaks"] == 0
    assert row["classified"] in (None, True)
    assert max(row["difference"]) < 1e-6
    assert min(row["without"][-3:]) > 0.02
