"""Verification of a compiled model: it changes nothing, catches what goes wrong, and says where."""

import re
import subprocess
import sys

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.errors import HeadforceError
from headforce.lowering.verify import Verification
from headforce.policy import Policy
from headforce.testing.faults import FAULTS

from .conftest import text, wan

pytestmark = pytest.mark.shares_graphs

POLICY = Policy.loads(
    """
headforce: 1
classes: {near: "sink(1)@collapse(4) | window(1)", far: "sink(1)@collapse(4) | window(3)"}
default: near
heads: {"1": {far: [2]}}
"""
)
VIEWED = Policy.loads('{headforce: 1, classes: {near: "sink(1) | window(1)"}, default: near}')


@pytest.fixture(autouse=True)
def failures(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADFORCE_FAILURES", str(tmp_path / "failures"))
    return tmp_path / "failures"


def video(verify, target="sdpa", mode="owned", policy=POLICY, inner="eager", chunks=(3, 3, 3), blocks=None, **more):
    model = wan(sink_size=1, num_layers=2)
    with headforce.prepare(model, policy=policy, mode=mode, verify=verify, **more) as session:
        session.compile(inner=inner, target=target, blocks=blocks)
        made = Rollout(model, model.config, timesteps=(1000.0,)).generate(text(model.config), list(chunks), seed=0)
        return made, session.launches


@pytest.mark.parametrize("mode", [pytest.param("owned", marks=pytest.mark.slow), "view"])
def test_what_is_watched_stays_as_it_is(mode, failures):
    policy = POLICY if mode == "owned" else VIEWED
    plain, launches = video("off", mode=mode, policy=policy)
    compiled = dict(torch._dynamo.utils.counters["stats"])
    for verify in ("plan", "site", "full"):
        made, its_launches = video(verify, mode=mode, policy=policy)
        assert torch.equal(made, plain)
        assert its_launches == launches
        assert dict(torch._dynamo.utils.counters["stats"]) == compiled
    assert not failures.exists()


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_faulty_target_is_named(mode, failures):
    with pytest.raises(HeadforceError, match="HF-VERIFY-SITE") as caught:
        video("site", "faulty_dropped_sink", mode, POLICY if mode == "owned" else VIEWED)
    error = caught.value
    assert "self_attn" in error.site
    assert "model.py" in error.site or "attention.py" in error.site
    assert "layer 0" in error.site
    assert re.search(r"batch row 0, head \d", error.site)
    assert ("of class near" in error.site) == (mode == "owned")
    assert "as if the run were missing" in error.found
    assert re.search(r"frames \d", error.found)
    (folder,) = failures.iterdir()
    assert str(folder) in error.hint
    assert Policy.load(folder / "policy.yaml") == (POLICY if mode == "owned" else VIEWED)
    done = subprocess.run([sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr


def test_under_inductor_too(failures):
    with pytest.raises(HeadforceError, match="HF-VERIFY-SITE"):
        video("site", "faulty_wrong_scale", inner="inductor", chunks=(3,), blocks="blocks")


@pytest.mark.slow
def test_every_nth_launch_is_looked_at():
    """The first launch is not the one, so what is wrong goes unnoticed until it is."""
    video("site", "faulty_wrong_scale", chunks=(3,), every=3)
    with pytest.raises(HeadforceError, match="HF-VERIFY-SITE"):
        video("site", "faulty_wrong_scale", chunks=(3, 3), every=3)


@pytest.mark.slow
def test_passes_that_nobody_looked_at_are_no_fault():
    """Every other pass is checked: what the passes between them wrote is not taken for a fault."""
    model = wan(sink_size=1)
    policy = Policy.loads('{headforce: 1, classes: {near: "sink(1) | window(3)"}, default: near}')
    with headforce.prepare(model, policy=policy, verify="full") as session:
        session.compile(inner="eager")
        for i, _ in enumerate(
            Rollout(model, model.config, timesteps=(1000.0, 500.0)).passes(text(model.config), [3] * 3)
        ):
            session.verify = Verification("off" if i % 2 else "full")
        assert session.launches == [9]


def test_pages_that_keep_a_noisy_pass_are_noticed():
    fault = FAULTS["committed_noisy_pass"]
    with fault.on():
        video("site")
        with pytest.raises(HeadforceError, match=r"HF-VERIFY-SITE.*last pass over frame"):
            video("full")


def test_tables_that_are_wrong_leave_a_folder(failures):
    with FAULTS["slot_off_by_one"].on(), pytest.raises(HeadforceError, match="HF-VERIFY-PLAN") as caught:
        video("plan")
    (folder,) = failures.iterdir()
    assert str(folder) in caught.value.hint
    assert {"repro.py", "plan.json", "tables.json", "policy.yaml"} <= {file.name for file in folder.iterdir()}
    # The fault is gone, so the plans of such a stream are right again.
    done = subprocess.run([sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "every plan is what the oracle says" in done.stdout
