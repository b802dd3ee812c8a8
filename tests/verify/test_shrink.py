"""Shrinking a rollout that fails, on faults that no single launch shows, and the folder that it leaves."""

import json
import runpy
from dataclasses import replace
from unittest import mock

import pytest
import torch
from click.testing import CliRunner

from examples.causal_wan import TINY, CausalWan, Rollout, init_random
from headforce.calls import load_example, sizes_of
from headforce.cli import main
from headforce.kvpass.owned_caches import OwnedCaches
from headforce.lowering.verify import Contents
from headforce.policy import Policy
from headforce.testing import faults
from headforce.verify.case import Case
from headforce.verify.fewer_calls import only_calls
from headforce.verify.rollout import Way, deviations, record
from headforce.verify.shrink import shrink
from headforce.verify.smaller import fewer_calls, plainer_policy, shorter, smaller_model
from headforce.verify.verdict import POLICY, Line, Verdict

from ..kvpass.conftest import clean_compiler  # noqa: F401  a fixture


def make(layers=2, heads=1, chunks=(1, 1), noisy=1, seed=0):
    config = replace(TINY, num_layers=layers, num_heads=heads, dim=24 * heads, sink_size=1)
    model = init_random(CausalWan(config).eval(), seed, peaked=True)
    text = torch.randn(1, TINY.text_len, TINY.text_dim)  # from whatever seed there is: a case sets one

    def calls(given):
        Rollout(given, config, timesteps=(1000.0, 500.0)[:noisy]).generate(text, list(chunks), seed=0)

    return model, calls


def one_layer():
    return make(layers=1, chunks=(2, 2))


EXAMPLE, FIXED = f"{__name__}:make", f"{__name__}:one_layer"
EAGER = Way(inner="eager")
SMALL = (("chunks", (1, 1)), ("heads", 1), ("layers", 1))


@pytest.fixture(autouse=True)
def failures(tmp_path, monkeypatch):
    folder = tmp_path / "failures"
    monkeypatch.setenv("HEADFORCE_FAILURES", str(folder))
    return folder


def status_of(folder):
    """The exit status of the script that a folder holds."""
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(folder / "repro.py"), run_name="__main__")
    return int(done.value.code)


def only(monkeypatch, *ways):
    """Fewer ways to try, where each attempt costs a compiled rollout."""
    monkeypatch.setattr("headforce.verify.shrink.WAYS", ways)


@pytest.mark.slow
def test_a_noisy_pass_that_is_committed(failures, monkeypatch):
    only(monkeypatch, shorter, smaller_model)
    with faults.FAULTS["committed_noisy_pass"].on():
        done = CliRunner().invoke(main, ["verify", EXAMPLE, "--inner", "eager", "--json"])
        assert done.exit_code == 1, done.output
        (folder,) = failures.iterdir()
        assert json.loads(done.stdout)["smallest"]["folder"] == str(folder)
        # One frame, one layer; the noisy pass, and the clean one, which finds that its page does not hold it.
        small = Case.load(folder)
        assert small.sizes == (("chunks", (1,)), ("layers", 1))
        assert small.calls == (0, 1)
        assert folder.name == f"rollout-{small.digest}"
        assert status_of(folder) == 1
    assert status_of(folder) == 0
    assert [path.name for path in failures.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_commit_that_is_skipped(monkeypatch):
    only(monkeypatch, shorter, fewer_calls)
    case = Case(FIXED, EAGER)
    with faults.FAULTS["skipped_commit"].on():
        verdict = case.verdict()
        assert (verdict.failing.level, verdict.failing.call) == ("V1", 2)
        found = shrink(case, verdict)
    # One pass that becomes history, and the one that should read it.
    assert found.case.calls == (1, 2)
    assert found.verdict.failing.like(verdict.failing)
    assert "calls 1, 2" in str(found)


@pytest.mark.slow
def test_layers_that_share_tables(monkeypatch):
    only(monkeypatch, smaller_model)
    right = OwnedCaches.tables
    case = Case(EXAMPLE, EAGER, sizes=(("chunks", (1,)), ("heads", 1), ("layers", 3)))
    with mock.patch.object(OwnedCaches, "tables", lambda self, layer: right(self, self.layers[0])):
        found = shrink(case, case.verdict())
        assert dict(found.case.sizes)["layers"] == 2  # with one there is nothing to mix up
        assert found.verdict.failing is not None


@pytest.mark.slow
def test_a_fault_of_a_class_under_a_policy(monkeypatch):
    only(monkeypatch, plainer_policy)
    policy = Policy.loads(
        'headforce: 1\nclasses: {far: "sink(1)@collapse(1) | window(1)", near: "window(1)"}\n'
        "heads: {0: {far: [0]}}\ndefault: near"
    )
    way = Way(inner="eager", target="faulty_stale_position", writes=False)
    case = Case(FIXED, way, policy, runs=("policy",))
    found = shrink(case, case.verdict())
    assert found.case.policy == Policy.loads('headforce: 1\nclasses: {x: "sink(1)@collapse(1)"}\ndefault: x')


@pytest.mark.slow
def test_the_call_that_departs_first():
    case = Case(EXAMPLE, EAGER, sizes=SMALL, runs=("native",))
    blind = mock.patch.object(Contents, "check", return_value=None)
    with faults.FAULTS["committed_noisy_pass"].on(), blind:
        failing = case.verdict().failing
    assert (failing.level, failing.call) == ("V2", 1)


PLANTED = Policy.loads(
    'headforce: 1\nclasses: {a: "sink(1) | window(2)", b: "window(1) | stride(4, last=2) | sink(2)", c: drop()}\n'
    "heads: {0: {a: [0]}, 1: {b: [0, 1]}}\nlayers: {2: a}\ndefault: c\nwarmup: {chunks: 2}\n"
    "on_switch: {a: flush(2)}\nposition_range: 21"
)


def planted(case):
    """Fails in calls 2 and 5 together, of at least two layers, under a policy in which some head has a stride."""
    sizes = {**sizes_of(EXAMPLE), **dict(case.sizes)}
    calls = range(12) if case.calls is None else case.calls
    terms = {str(term) for rule in case.policy.classes.values() for term in rule.terms}
    if sizes["heads"] == 3:
        raise ValueError("no such model")
    if sizes["chunks"] == (2,) or len(calls) == 5:
        return Verdict((Line("V0", False, "", POLICY, "HF-CLOCK", 0),), (), 0)
    fails = {2, 5} <= set(calls) and sizes["layers"] >= 2 and "stride(4, phase=0, last=2)" in terms
    call = list(calls).index(5) if fails else None
    return Verdict((Line("V3", not fails, "", POLICY, "HF-VERIFY-SITE", call),), (), 0)


def test_the_search(monkeypatch):
    monkeypatch.setattr(Case, "verdict", planted)
    sizes = (("chunks", (3, 1, 3)), ("heads", 4), ("layers", 5))
    case = Case(EXAMPLE, Way(target="sdpa"), PLANTED, sizes=sizes)
    found = shrink(case, planted(case))
    assert found.case.calls == (2, 5)
    assert dict(found.case.sizes) == {"chunks": (1,), "heads": 1, "layers": 2}
    assert found.case.policy == Policy.loads('headforce: 1\nclasses: {b: "stride(4, last=2)"}\ndefault: b')
    assert (found.case.way.inner, found.case.sites) == ("eager", 0)
    assert found.tried < 60
    again = shrink(case, planted(case))
    assert (again.folder, again.tried) == (found.folder, found.tried)
    # What breaks in another way is no smaller failure of this kind.
    wanted = planted(case)
    assert not planted(replace(case, sizes=(("chunks", (2,)),))).failing.like(wanted.failing)


def outputs(example):
    return record(example, Way())


def test_fewer_calls_are_the_same_calls():
    example = Case(EXAMPLE).made()
    whole = outputs(example)
    first = outputs(only_calls(example, (0, 1, 2)))
    assert len(first.outputs) == 3
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first.outputs, whole.outputs, strict=False))
    # Without the clean pass of the first chunk the second one sees what the noisy pass left.
    some = outputs(only_calls(example, (0, 2, 3)))
    assert torch.equal(some.outputs[0][0], whole.outputs[0][0])
    assert not torch.equal(some.outputs[1][0], whole.outputs[2][0])
    every = outputs(only_calls(example, (1, 2, 3)))  # what the noisy pass left is overwritten by the clean one
    assert not any(deviations(every, replace(whole, outputs=whole.outputs[1:])))
    listed = only_calls(replace(example, calls=[((i,), {}) for i in range(4)]), (0, 2, 7))
    assert listed.calls == [((0,), {}), ((2,), {})]


def test_a_function_that_catches_everything_is_stopped_too():
    example = Case(EXAMPLE).made()

    def stubborn(given):
        for _ in range(3):
            try:
                example.calls(given)
            except Exception:
                continue

    assert len(outputs(only_calls(replace(example, calls=stubborn), (0,))).outputs) == 1


def test_sizes_are_the_arguments_that_say_how_many():
    assert sizes_of(EXAMPLE) == {"layers": 2, "heads": 1, "noisy": 1, "chunks": (1, 1)}
    assert sizes_of("examples.causal_wan:CausalWan") == {}
    assert len(load_example(EXAMPLE, {"layers": 1}).model.blocks) == 1


def test_every_candidate_is_smaller_so_that_shrinking_ends():
    case = Case(EXAMPLE, EAGER, PLANTED, sizes=(("layers", 5), ("chunks", (3, 1, 3))), calls=(0, 2, 3, 7))

    def weight(case):
        sizes = {**sizes_of(EXAMPLE), **dict(case.sizes)}
        p = case.policy
        exceptions = len(p.layers) + sum(len(by) for by in p.heads.values()) + len(p.on_switch)
        terms = sum(len(rule.terms) for rule in p.classes.values())
        named = (p.warmup is not None) + (p.position_range is not None)
        return (
            sum(value if isinstance(value, int) else len(value) + sum(value) for value in sizes.values())
            + len(case.calls)
            + exceptions
            + 2 * terms
            + named
        )

    found = [c for way in (smaller_model, fewer_calls, plainer_policy) for c in way(case, None)]
    assert len(found) == 30
    assert all(weight(candidate) < weight(case) for candidate in found)
    assert all(candidate.calls[-1] == 7 for candidate in found)


def test_a_case_is_read_back_as_it_was_written(tmp_path):
    policy = Policy.loads("headforce: 1\nclasses: {near: window(2)}\ndefault: near")
    way = Way(mode="view", target="sdpa", inner="eager", writes=False)
    case = Case(EXAMPLE, way, policy, 1e-3, ("json",), SMALL, (0, 2), 1, ("policy",))
    for name, data in case.files().items():
        (tmp_path / name).write_bytes(data)
    assert Case.load(tmp_path) == case
    assert Case.load(tmp_path).digest == case.digest != replace(case, sites=0).digest
