"""`headforce profile` on checkouts: the unmodified models are measured, and the policy is one that they run under."""

from __future__ import annotations

from pathlib import Path

import pytest

from headforce.policy import Policy
from headforce.presets import Labels

from .child import checkout_of, needs_diffusers, printed_by
from .test_doctor_upstream import TARGETS


@pytest.mark.slow
@needs_diffusers
@pytest.mark.parametrize("target", TARGETS)
def test_the_profile_of_a_repository(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout_of(TARGETS[target])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["profile", f"tests/upstream/doctor_targets.py:{target}", "--method", "forcing_kv", "--budget", "0.8"]
    report = printed_by("headforce", *command, "--inner", "eager", "--json", "--out", str(tmp_path))
    assert sum(report["counts"].values()) == report["model"]["layers"] * report["model"]["heads"]
    assert Labels.load(tmp_path / "labels.json").counts() == report["counts"]
    assert report["rules"][-1] == {"rule": "native", "pages": report["rules"][-1]["pages"], "kept": pytest.approx(1)}
    budget = report["budget"]
    assert budget["share"] <= 0.8
    assert budget["kept"] >= max(budget["controls"].values())
    bound = Policy.load(tmp_path / "policy.yaml").bind(layers=report["model"]["layers"], heads=report["model"]["heads"])
    assert len(bound.distinct) == len(budget["heads"])
