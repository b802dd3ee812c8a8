"""Every family whose checkout is at hand: HEADFORCE_UPSTREAM names a folder with them, named as families are."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = os.environ.get("HEADFORCE_UPSTREAM", "")
CASES = [*((name, "sdpa") for name in FAMILIES), ("self-forcing", "triton")]


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the checkouts need diffusers and einops")
@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_unmodified_repository(name: str, target: str) -> None:
    """Its own pipeline: equal under native(), rewritten, whole graphs, and as it was after restore()."""
    family = FAMILIES[name]
    checkout = Path(CHECKOUTS) / (family.checkout or name)
    if not CHECKOUTS or not checkout.is_dir():
        pytest.skip(f"HEADFORCE_UPSTREAM names no folder with a checkout {checkout.name} of {family.url}")
    # Each in a process of its own: several have packages of the same name.
    done = subprocess.run(
        [sys.executable, "-m", "tests.upstream", name, str(checkout), "--target", target, "--quiet"],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["bare"]["prepare"], row["bare"]
    assert (row["prepared"] or {}).get("code", "") == family.refusal
    assert bool(row["sides"]) == (not family.refusal)
    # Kernels turn by a float32 rotation and sum in another order: within a rounding of bfloat16.
    most = 0.0 if target == "sdpa" else 0.01
    for side in row["sides"]:
        native = side["name"].startswith("native")
        assert side["sites"]["rewritten"] > 0
        assert side["sites"]["refused"] == side["breaks"] == side["misses"] == side["late"] == 0
        assert set(side["launches"]) <= {1.0, 2.0}
        assert side["graphs"] <= family.graphs
        assert (side["difference"] <= most) == native
        assert native or side["held"] < row["held"] + family.fills
