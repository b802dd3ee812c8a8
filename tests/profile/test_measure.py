"""Measuring video by video: interrupted, gone on with, and refused; and the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from headforce import HeadforceError
from headforce.calls import Example
from headforce.cli import main
from headforce.kvpass.layers import viewed
from headforce.presets import Labels, read_policy
from headforce.profile.file import load_profile
from headforce.profile.measure import measure
from headforce.profile.measured import Sample
from headforce.profile.rollouts import Rollouts

from .planted import TOKENS, example, planted, rollout

OPTIONS = {"inner": "eager"}
SAMPLE = Sample(1.0, 0, False)


@pytest.fixture(autouse=True)
def clean():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    viewed.clear()


def test_an_interrupted_run_goes_on(tmp_path):
    """Ctrl-C in the middle of the second of three videos: the first is there, and is not made again."""
    made, stop = [], [True]

    def short(model, seed):
        made.append(seed)
        for chunks in (1, 2):
            if seed == 1 and chunks == 2 and stop:
                raise KeyboardInterrupt
        rollout(model, seed, chunks)

    model = planted(1, 1)
    model.bias = torch.nn.Parameter(torch.zeros(3))
    rollouts = Rollouts.of(Example(model, short), seeds=3)
    with pytest.raises(KeyboardInterrupt):
        measure(rollouts, tmp_path, sample=SAMPLE, source="it", options=OPTIONS)
    assert [dict(video.name) for video in load_profile(tmp_path).videos] == [{"seed": 0}]
    stop.clear()
    found = measure(rollouts, tmp_path, sample=SAMPLE, source="it", options=OPTIONS)
    assert made == [0, 1, 1, 2]
    assert [dict(video.name) for video in found.videos] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert [len(video.passes) for video in found.videos] == [2, 2, 2]
    measure(rollouts, tmp_path, sample=SAMPLE, source="it", options=OPTIONS)  # all there: nothing is run
    assert made == [0, 1, 1, 2]
    for other in ({"sample": Sample(0.5, 0, False)}, {"source": "another"}):
        with pytest.raises(HeadforceError, match="HF-PROFILE-FILE"):
            measure(rollouts, tmp_path, **{"sample": SAMPLE, "source": "it"} | other)
    assert made == [0, 1, 1, 2]
    words = []
    measure(rollouts, tmp_path, sample=SAMPLE, source="it", options=OPTIONS, say=words.append)
    assert words == [f"using 3 videos measured before in {tmp_path} (--fresh measures anew)"]
    for wider in (Rollouts.of(Example(planted(2, 1), short), seeds=3), _trained(rollouts)):
        with pytest.raises(HeadforceError, match=r"HF-PROFILE-FILE.*other weights"):
            measure(wider, tmp_path, sample=SAMPLE, source="it", options=OPTIONS)
    assert made == [0, 1, 1, 2]

    def uncompiled(model):
        with torch.compiler.set_stance("force_eager"):
            rollout(model, 0, 1)

    alone = Rollouts.of(Example(rollouts.model, uncompiled))
    with pytest.raises(HeadforceError, match=r"HF-PROFILE-DATA.*without being measured"):
        measure(alone, tmp_path / "other", sample=SAMPLE, options=OPTIONS)
    assert not (tmp_path / "other").exists()


def _trained(rollouts):
    """The same model with other weights."""
    model = copy.deepcopy(rollouts.model)
    with torch.no_grad():
        model.bias += 1
    return replace(rollouts, model=model)


def test_what_a_target_has_to_be():
    model = planted(1, 1)
    assert Rollouts.of(Example(model, rollout), seeds=2).names == ({"seed": 0}, {"seed": 1})
    assert Rollouts.of(Example(model, lambda model, prompt, seed: None), 2, 2).names[2] == {"prompt": 1, "seed": 0}
    for calls in (lambda model: None, [((), {})]):
        assert Rollouts.of(Example(model, calls)).names == ({},)
        with pytest.raises(HeadforceError, match="HF-EXAMPLE"):
            Rollouts.of(Example(model, calls), seeds=2)
    with pytest.raises(HeadforceError, match="HF-EXAMPLE"):
        Rollouts.of(Example(model, rollout), prompts=2)


def test_calls_are_made_on_copies_of_their_arguments():
    """The caches of an example are as empty afterwards as before."""
    model = planted(1, 1)
    caches = model.caches()
    x = torch.randn(1, 3 * TOKENS, 17)
    calls = [((x,), {"kv_cache": caches, "current_start": start}) for start in (0, 3 * TOKENS)]
    rollouts = Rollouts.of(Example(model, calls))
    first, second = rollouts.make({})
    assert caches[0]["global_end_index"] == 0
    assert not caches[0]["k"].any()
    again = model.caches()
    assert torch.equal(first, model(x, again, 0))
    assert torch.equal(second, model(x, again, 3 * TOKENS))  # both calls have one cache


@pytest.mark.slow
def test_the_command(tmp_path):
    target = f"{Path(__file__).with_name('planted.py')}:example"
    assert callable(example)
    command = ["profile", "tests.profile.planted:example", "--out", str(tmp_path), "--inner", "eager"]
    command += ["--blocks", "layers"]
    forcing = [*command, "--method", "forcing_kv", "--set", "skip=3"]
    first = CliRunner().invoke(main, [*forcing, "--json", "--budget", "0.6"], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["counts"] == {"dynamic": 7, "static": 1}
    assert 0 < report["budget"]["share"] <= 0.6
    assert Labels.load(tmp_path / "labels.json").counts() == report["counts"]
    assert read_policy(tmp_path / "policy.yaml").made_for == Labels.load(tmp_path / "labels.json").shape
    second = CliRunner().invoke(main, [*command, "--method", "pyramid"], catch_exceptions=False)  # not measured again
    assert second.exit_code == 0, second.output
    assert "wave" in second.output
    assert str(read_policy(tmp_path / "policy.yaml").classes["veil"]).startswith("sink(3)")
    for wrong, says in (
        ([*command, "--method", "pyramids"], "HF-PROFILE-METHOD"),
        ([*command, "--set", "nothing=1"], "HF-PROFILE-METHOD"),
        ([*command, "--queries", "0.5"], "HF-PROFILE-FILE"),
        ([*command, "--budget", "0.01"], "HF-BUDGET"),
        ([*command, "--seeds", "2", "--prompts", "2"], "HF-EXAMPLE"),
        (["profile", f"{target}s"], "HF-EXAMPLE"),
    ):
        refused = CliRunner().invoke(main, wrong)
        assert refused.exit_code == 2
        assert says in refused.stderr
    assert CliRunner().invoke(main, [*command, "--set", "nothing"]).exit_code == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--set", "threshold=abc", "--method", "forcing_kv"], "threshold='abc'"),
        (["--set", "threshold=[1"], "--set"),
        (["--set", "skip=1.5", "--method", "forcing_kv"], "a whole number for skip"),
        (["--set", "signs=2"], "signs=2"),
        (["--rule", "stride(6)", "--budget", "0.6"], "HF-UNBOUNDED"),
        (["--rule", "native()", "--budget", "0.6"], "HF-NATIVE"),
        (["--rule", "window(2)"], "--budget"),
        (["--rule", "windw(2)", "--budget", "0.6"], "HF-OP-UNKNOWN"),
        (["--inner", "egaer"], "HF-OPTION"),
        (["--out", __file__], "HF-PROFILE-FILE"),
    ],
)
def test_what_is_refused_before_anything_runs(tmp_path, wrong, says):
    """The target is not there, which nobody comes to see."""
    done = CliRunner().invoke(main, ["profile", "nowhere.py:x", "--out", str(tmp_path), *wrong])
    assert done.exit_code == 2
    assert says in done.stderr
