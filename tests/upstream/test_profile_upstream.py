"""`headforce profile` on checkouts: the unmodified models are measured, and the policy is one that they run under."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headforce.policy import Policy
from headforce.presets import Labels

from .test_doctor_upstream import CHECKOUTS, ROOT, TARGETS


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the checkouts need diffusers and einops")
@pytest.mark.parametrize("target", TARGETS)
def test_the_profile_of_a_repository(target: str, tmp_path: Path) -> None:
    if not CHECKOUTS or not (Path(CHECKOUTS) / TARGETS[target]).is_dir():
        pytest.skip(f"HEADFORCE_UPSTREAM names no folder with a checkout {TARGETS[target]}")
    command = ["profile", f"tests/upstream/doctor_targets.py:{target}", "--method", "forcing_kv", "--budget", "0.8"]
    done = subprocess.run(
        [sys.executable, "-m", "headforce", *command, "--inner", "eager", "--json", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert sum(report["counts"].values()) == report["model"]["layers"] * report["model"]["heads"]
    assert Labels.load(tmp_path / "labels.json").counts() == report["counts"]
    assert report["rules"][-1] == {"rule": "native", "pages": report["rules"][-1]["pages"], "kept": pytest.approx(1)}
    budget = report["budget"]
    assert budget["share"] <= 0.8
    assert budget["kept"] >= max(budget["controls"].values())
    bound = Policy.load(tmp_path / "policy.yaml").bind(layers=report["model"]["layers"], heads=report["model"]["heads"])
    assert len(bound.distinct) == len(budget["heads"])
