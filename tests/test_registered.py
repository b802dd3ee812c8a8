"""`headforce list`: all that is registered, and what it lacks by name."""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
from click.testing import CliRunner

from headforce.cli import main
from headforce.policy import FrameSet, Op, policy_op
from headforce.policy import op as operators
from headforce.registered import registered


def run(*args):
    return CliRunner().invoke(main, ["list", *args])


@pytest.mark.slow
def test_nothing_of_headforce_lacks_anything():
    """In a process of its own: tests in this one register targets that are wrong on purpose."""
    command = [sys.executable, "-m", "headforce", "list", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 lack something\n")


def test_every_registry_is_listed():
    result = run()
    kinds = ["operators", "scores", "makers", "targets", "recognisers", "adapters", "presets", "profile methods"]
    assert [line for line in result.output.splitlines() if line and not line.startswith(" ")] == kinds
    assert "window" in result.output
    assert "headforce/policy/ops/window.py:" in result.output
    assert "The newest `size` committed frames." in result.output


def test_one_kind_and_json():
    listed = json.loads(run("targets", "--json").output)
    assert {thing["name"] for thing in listed} >= {"reference", "sdpa", "triton", "hopper"}
    assert {thing["kind"] for thing in listed} == {"target"}
    assert run("nonsense").exit_code == 2


@pytest.fixture
def unfinished():
    @policy_op("unfinished")
    @dataclass(frozen=True)
    class Unfinished(Op):
        def frames(self, chunk, query):
            return FrameSet()

    yield
    operators._OPS.pop("unfinished")


def test_what_is_missing_is_reported_by_name(unfinished):
    result = run("--check")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "unfinished" in line]
    assert line.startswith("operator unfinished (")
    assert line.endswith("lacks a docstring, materialize(), bound(), settles()")


def test_targets_makers_scores_recognisers_and_adapters_that_lack_something(monkeypatch):
    from headforce.kvpass.recognize import base
    from headforce.lowering.state import making, score
    from headforce.lowering.targets import registry

    def bare(query):
        return query

    class Bare:
        name = "bare"

    adapters = importlib.import_module("headforce.kvpass.capture.adapter")  # its package has a name like it
    registered()
    monkeypatch.setitem(registry._TARGETS, "bare", bare)
    monkeypatch.setitem(making._MAKERS, "bare", bare)
    monkeypatch.setitem(score._SCORES, "bare", score.Score("bare", bare, "best", False, False, False, False))
    monkeypatch.setitem(base._REGISTRY, "rope", [*base._REGISTRY["rope"], (99, "bare", bare)])
    monkeypatch.setitem(adapters._ADAPTERS, "bare", Bare())
    lacking = {thing.kind: thing.lacks for thing in registered() if "bare" in thing.name}
    assert lacking["target"] == (
        "a docstring",
        "the arguments of its reference, kernels.reference.ragged_attention",
    )
    assert lacking["maker"] == ("a docstring", "a reference: materialize_part() of its operator")
    assert lacking["score"] == ("a docstring", "a best that is 'lowest' or 'highest'")
    assert lacking["recogniser"] == ("a docstring", "a counter-example")
    assert lacking["adapter"] == ("a docstring",)


def test_things_of_an_installed_package_are_listed(monkeypatch, tmp_path):
    (tmp_path / "my_preset.py").write_text(
        "from headforce.presets.registry import preset\n"
        "from headforce.presets import make_preset\n\n"
        '@preset("mine")\ndef mine():\n    """Mine."""\n    return make_preset("longlive")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("mine", "my_preset", "headforce.presets")
    from headforce.presets import registry

    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry.load_presets()
    try:
        (thing,) = [thing for thing in registered() if thing.name == "mine"]
        assert (thing.kind, thing.where, thing.line) == ("preset", f"{tmp_path}/my_preset.py:4", "Mine.")
    finally:
        registry._PRESETS.pop("mine")
