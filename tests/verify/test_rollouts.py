"""Verifying whole rollouts, and finding the call and the site that are at fault."""

import json

import pytest
import torch
from click.testing import CliRunner

from examples.causal_wan import Rollout
from headforce.calls import Example
from headforce.cli import main
from headforce.lowering.targets import find_target, target
from headforce.policy import Policy
from headforce.testing import faults
from headforce.verify.bisect import bisect
from headforce.verify.rollout import Way, record
from headforce.verify.verdict import verify

from ..kvpass.conftest import clean_compiler, text, wan  # noqa: F401  a fixture

POLICY = Policy.loads('{headforce: 1, classes: {near: "sink(1)@collapse(4) | window(1)"}, default: near}')


def example(chunks=(3, 3), layers=1):
    model = wan(sink_size=1, num_layers=layers)

    def calls(given):
        Rollout(given, model.config, timesteps=(1000.0,)).generate(text(model.config), list(chunks), seed=0)

    return Example(model, calls)


@target("faulty_second_layer")
def faulty_second_layer(query, key, value, reads, runs, theta, first_pair, style, scale):
    """Wrong for the layer whose pages lie in the second half of the pool."""
    first = next(int(read[4]) for read in reads if read[3] and read[5])
    behind = int(runs[first, 0]) >= key.shape[0] * key.shape[1] // 2
    return find_target("sdpa")(query, key, value, reads, runs, theta, first_pair, style, (2 if behind else 1) * scale)


def test_a_model_that_is_right(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADFORCE_FAILURES", str(tmp_path / "failures"))
    verdict = verify(example(), POLICY, Way(inner="eager"))
    assert verdict.holds, str(verdict)
    assert [line.level for line in verdict.lines] == ["V0", "V1", "V3", "V2", "V4", "V0", "V1", "V3"]
    assert verdict.drift == (0.0,) * 4  # in canonical order, bit for bit
    assert not (tmp_path / "failures").exists()


def test_a_target_that_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADFORCE_FAILURES", str(tmp_path))
    verdict = verify(example(), None, Way(inner="eager", target="faulty_wrong_scale"))
    assert [(line.level, line.holds) for line in verdict.lines] == [("V3", False)]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "site"), [pytest.param("faulty_second_layer", 1, marks=pytest.mark.slow), ("sdpa", None)]
)
def test_the_site_that_is_at_fault(name, site):
    found = bisect(example([3], layers=2), Way(inner="eager", target=name))
    assert found.site == site
    assert (found.call is None) == (name == "sdpa")


@pytest.mark.slow
def test_the_pass_is_at_fault_where_the_reference_departs_too():
    with faults.FAULTS["committed_noisy_pass"].on():
        found = bisect(example(), Way(inner="eager", target="sdpa"))
    assert found.call is not None
    assert found.site is None


def test_rollouts_are_made_on_copies():
    made = example()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    state = torch.get_rng_state()
    record(made, Way())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


FACTORY = """
import torch
from dataclasses import replace
from examples.causal_wan import TINY, CausalWan, Rollout, init_random

CONFIG = replace(TINY, sink_size=1, num_layers=1)

def make():
    model = init_random(CausalWan(CONFIG).eval())
    text = torch.randn(1, TINY.text_len, TINY.text_dim)
    return model, lambda given: Rollout(given, CONFIG, timesteps=(1000.0,)).generate(text, [3], seed=0)
"""


@pytest.mark.slow
def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADFORCE_FAILURES", str(tmp_path / "failures"))
    (tmp_path / "factory.py").write_text(FACTORY)
    named = [f"{tmp_path / 'factory.py'}:make", "--inner", "eager", "--json"]
    done = CliRunner().invoke(main, ["verify", *named])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["holds"]
    wrong = ["--target", "faulty_wrong_scale", "--import", "headforce.testing.faults"]
    done = CliRunner().invoke(main, ["bisect", *named, *wrong])
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["site"] == 0


@pytest.mark.slow
def test_what_cannot_be_verified(tmp_path, monkeypatch):
    """What was asked for is wrong, and not the compiled model: nothing is shrunk and nothing written."""
    monkeypatch.setenv("HEADFORCE_FAILURES", str(tmp_path / "failures"))
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "policy.yaml").write_text("headforce: 1\nclasses: {a: drop()}\nlayers: {7: a}\n")
    named = [f"{tmp_path / 'factory.py'}:make", "--inner", "eager"]
    for wrong, code in (
        (["--inner", "egaer"], "HF-OPTION"),
        (["--target", "spda"], "HF-TARGET"),
        (["--import", "no_such_module"], "HF-OPTION"),
        (["--policy", str(tmp_path / "policy.yaml")], "HF-POLICY-SHAPE"),
    ):
        done = CliRunner().invoke(main, ["verify", *named, *wrong])
        assert (done.exit_code, code in done.stderr, done.stdout) == (2, True, "")
    assert not (tmp_path / "failures").exists()
