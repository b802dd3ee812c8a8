"""Verifying whole rollouts, and finding the call and the site that are at fault."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from click.testing import CliRunner

from examples.causal_wan import CausalWan, Rollout, init_random
from headforce import HeadforceError
from headforce.calls import Example
from headforce.cli import main
from headforce.lowering.targets import find_target, target
from headforce.policy import Policy
from headforce.testing import faults
from headforce.verify.bisect import Culprit, bisect
from headforce.verify.rollout import Recorded, Way, deviations, record
from headforce.verify.verdict import Verdict, allowed, verify

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


@dataclass
class Flow:
    flow: object
    steps: object = ()
    note: str = "a flow"


class Opaque:
    def __init__(self, flow):
        self.flow = flow


class Wrapped(CausalWan):
    """The example model, with what `wrap(call, flow)` makes of its result as what it returns."""

    wrap = staticmethod(lambda call, flow: flow)
    made = 0

    def forward(self, x, t, context, kv_cache, crossattn_cache, current_start=0):
        flow = super().forward(x, t, context, kv_cache, crossattn_cache, current_start)
        self.made += 1
        return self.wrap(self.made - 1, flow)


def wrapped(wrap):
    """Four calls: a noisy pass and a clean one for each of two chunks. What is returned does not come back."""
    model = init_random(Wrapped(wan(sink_size=1).config).eval(), peaked=True)
    model.wrap = wrap

    def calls(given):
        def flow(x, *args, **kwargs):
            given(x, *args, **kwargs)
            return x

        Rollout(flow, model.config, timesteps=(1000.0,)).generate(text(model.config), [1, 1], seed=0)

    return Example(model, calls)


def test_dataclasses_are_looked_into():
    made = record(wrapped(lambda call, flow: Flow(Flow(flow, {"a": [flow]}), (flow, 3, Flow))), Way())
    assert [len(output) for output in made.outputs] == [3] * 4


@pytest.mark.slow
def test_a_compiled_model_that_returns_a_dataclass():
    example = wrapped(lambda call, flow: Flow(flow))
    verdict = verify(example, None, Way(inner="eager"), limit=0.0)
    assert verdict.holds, str(verdict)
    assert verdict.drift == (0.0,) * 4


@pytest.mark.parametrize("limit", [None, 1e-3])
@pytest.mark.parametrize("check", [lambda *args: verify(args[0], None, *args[1:]), bisect], ids=["verify", "bisect"])
def test_a_model_of_whose_results_nothing_can_be_compared(check, limit):
    for wrap, kinds in (
        (lambda call, flow: Opaque(flow), "Opaque"),
        (lambda call, flow: None if call else (flow[:0], "nothing"), "tuple, NoneType"),
    ):
        with pytest.raises(HeadforceError) as caught:
            check(wrapped(wrap), Way(inner="eager"), limit)
        assert caught.value.code == "HF-EXAMPLE"
        assert caught.value.found == f"calls that return no number ({kinds})"


def test_a_call_may_return_no_number():
    """The first that is one says what is allowed, and a step that is counted does not."""
    made = record(wrapped(lambda call, flow: (None, (torch.tensor(3), flow.bfloat16()))[call % 2]), Way())
    assert [len(output) for output in made.outputs] == [0, 2, 0, 2]
    assert allowed(made) == 4 * torch.finfo(torch.bfloat16).eps
    assert allowed(Recorded([[torch.tensor(3)]])) == 1e-5
    assert deviations(made, made) == [0.0] * 4
    assert deviations(replace(made, outputs=[[], [], [], made.outputs[3]]), made) == [0.0, math.inf, 0.0, 0.0]


def test_json_has_no_infinity():
    found = Verdict((), (0.0, math.inf, math.nan), math.inf).to_json()
    assert found["drift"] == [0.0, None, None]
    assert found["limit"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert Culprit(2, math.inf, 3, 1).to_json() == {"call": 2, "error": None, "runs": 3, "site": 1}
    assert Culprit(None, 0.5, 3).to_json()["error"] == 0.5


def test_the_commands_print_what_is_json(monkeypatch):
    monkeypatch.setattr("headforce.verify.case.Case.verdict", lambda _: Verdict((), (math.inf,), 1e-5))
    monkeypatch.setattr("headforce.calls.load_example", lambda _: None)
    monkeypatch.setattr("headforce.verify.bisect.bisect", lambda *_: Culprit(0, math.inf, 2))
    for command, key, value in (("verify", "drift", [None]), ("bisect", "error", None)):
        done = CliRunner().invoke(main, [command, "nowhere.py:x", "--json"], catch_exceptions=False)
        assert json.loads(done.stdout, parse_constant=pytest.fail)[key] == value


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
