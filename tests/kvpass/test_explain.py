"""`headforce.explain`: what it says, and that it leaves everything alone."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import headforce
from examples.causal_wan import Rollout
from examples.one_call import first_chunk
from headforce import HeadforceError
from headforce.cli import main
from headforce.kvpass import explain
from headforce.kvpass.layers import owned, viewed
from headforce.kvpass.shell import virtual_bytes
from headforce.policy import Policy
from headforce.testing import zoo

from .conftest import videos, wan

ROOT = Path(__file__).parents[2]
TINY_POLICY = ROOT / "examples/policies/tiny.yaml"
EAGER = {"inner": "eager"}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_every_attention_call_is_in_it() -> None:
    model, args, kwargs = first_chunk()
    seen = headforce.explain(model, *args, **kwargs)
    assert (seen.model, seen.family, seen.prepared, seen.graphs, seen.breaks) == (
        "CausalWan",
        "dict-cache",
        None,
        1,
        (),
    )
    assert [(site.verdict, site.name) for site in seen.sites] == [
        ("found", "blocks.0.self_attn"),
        ("found", "blocks.1.self_attn"),
        ("excluded", "blocks.0.cross_attn"),
        ("excluded", "blocks.1.cross_attn"),
    ]
    assert all("attention.py:" in site.where for site in seen.sites)
    assert seen.sites[0].cache == "written in place, 144 rows, 6 frames"
    assert seen.sites[0].frames == "frames 0 to 2, 24 tokens each"
    assert (seen.sites[0].not_owned, seen.sites[0].not_viewed, seen.outlook) == ("", "", None)
    assert json.loads(json.dumps(seen.to_json()))["sites"][0]["verdict"] == "found"


def test_the_model_and_its_caches_are_left_alone() -> None:
    model, args, kwargs = first_chunk()
    before = copy.deepcopy((args, kwargs))
    hooks = (len(model._forward_pre_hooks), len(model._forward_hooks))
    known = {*owned, *viewed}  # what other tests left
    headforce.explain(model, *args, **kwargs)
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks
    for ours, theirs in zip(kwargs["kv_cache"], before[1]["kv_cache"], strict=True):
        assert torch.equal(ours["k"], theirs["k"])
        assert ours["global_end_index"] == theirs["global_end_index"] == 0
    assert known >= {*owned, *viewed}


def test_what_a_policy_would_keep() -> None:
    model, args, kwargs = first_chunk()
    seen = headforce.explain(model, *args, policy=str(TINY_POLICY), **kwargs)
    plain = {line.name: (line.heads, line.kept) for line in seen.outlook.classes}
    assert plain == {"near": (4, 1), "rhythm": (3, 2), "far": (1, 3)}
    assert seen.outlook.native_kept == 3
    # 4 heads read 4 of 6 frames, 3 read 5, 1 reads 6.
    assert seen.outlook.flops == pytest.approx((4 * 4 + 3 * 5 + 6) / (8 * 6))
    frame = 2 * 24 * 24 * 4  # K and V of one head
    assert seen.outlook.dense_bytes == 8 * 6 * frame
    assert seen.outlook.not_viewed.startswith("[HF-EVICTED]")  # sink(1), and the cache keeps none
    assert "near" in str(seen)


@pytest.mark.slow
def test_bytes_are_those_that_a_session_then_holds() -> None:
    model = wan(num_layers=2)
    policy = Policy.load(TINY_POLICY)
    call = first_chunk()
    outlook = headforce.explain(model, *call[1], policy=policy, **call[2]).outlook
    with headforce.prepare(model, policy=policy) as session:
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3] * 6,))
        assert session.pool_bytes == outlook.pool_bytes


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_prepared_model_is_explained_with_its_policy(mode: str) -> None:
    model = wan(sink_size=1, num_layers=2)
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    with headforce.prepare(model, policy=policy, mode=mode) as session:
        _, args, kwargs = first_chunk()
        seen = headforce.explain(model, *args, **kwargs)
        assert seen.prepared == mode
        assert seen.outlook.classes[0].rule == "window(1)"
        assert session.cache_sets == []  # the call was not the session's
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3],))
        assert session.launches == [3, 3]


@pytest.mark.slow
def test_shells_are_not_copied_at_their_full_size() -> None:
    model = wan(num_layers=2)
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    with headforce.prepare(model, policy=policy):
        rollout = Rollout(torch.compile(model, backend="headforce", options=EAGER), model.config, (1000.0,))
        rollout.generate(first_chunk()[1][2], [3])
        gc.collect()  # what earlier tests left behind
        before = virtual_bytes()
        seen = []
        original = explain.make_shell
        explain.make_shell = lambda *args: seen.append(args) or original(*args)
        try:
            _, args, _ = first_chunk()
            caches = {"kv_cache": rollout.kv_cache, "crossattn_cache": rollout.crossattn_cache}
            assert headforce.explain(model, *args, **caches).count("found") == 2
        finally:
            explain.make_shell = original
        assert len(seen) == 4  # K and V of two layers
        assert virtual_bytes() == before  # and they are gone


def test_the_rule_of_an_unknown_model_late_in_a_stream() -> None:
    layer = zoo.SelfAttention()
    cache = layer.new_cache()
    for x, start in zoo.inputs(5, passes=1):
        layer(x, cache, start)
    outlook = headforce.explain(layer, x, cache, start, policy=Policy({})).outlook
    assert outlook.native == "span(6)"


def test_refusals_come_with_code_and_place() -> None:
    layer = zoo.SelfAttention(protocol=lambda k, v, cache, start: (k, v))
    x, start = next(zoo.inputs(1))
    seen = headforce.explain(layer, x, layer.new_cache(), start, policy=Policy({}))
    (site,) = seen.sites
    assert (site.verdict, site.code, seen.outlook) == ("refused", "HF-NOHISTORY", None)
    assert "HF-NOHISTORY" in str(seen)


def test_why_a_site_cannot_be_owned() -> None:
    layer = zoo.SelfAttention(core="sdpa_gqa", raw_cache=True)
    x, start = next(zoo.inputs(1))
    (site,) = headforce.explain(layer, x, layer.new_cache(), start).sites
    assert site.not_owned.startswith("[HF-OWNED]")
    assert site.not_viewed == ""
    assert "over 2 K/V heads" in site.query
    bare = zoo.SelfAttention(rope="none")
    seen = headforce.explain(bare, x, bare.new_cache(), start, policy=Policy({}))
    assert seen.sites[0].not_viewed.startswith("[HF-CLOCK]")
    assert seen.outlook is None  # nothing says which frames are which


def test_a_pass_that_only_fills_its_cache() -> None:
    def filling(k, v, cache, start):
        cache["k"][:, : k.shape[1]] = k
        cache["v"][:, : k.shape[1]] = v
        return k, v

    layer = zoo.SelfAttention(protocol=filling)
    x, start = next(zoo.inputs(1))
    (site,) = headforce.explain(layer, x, layer.new_cache(), start).sites
    assert (site.verdict, site.not_owned, site.not_viewed) == ("found", "", "")
    assert site.cache.startswith("written in place and not read in this pass, ")


def test_graph_breaks_are_listed() -> None:
    model, args, kwargs = first_chunk()
    model.blocks[0].ffn.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    seen = headforce.explain(model, *args, **kwargs)
    assert seen.graphs > 1
    assert [(found.cause, Path(found.where.rpartition(":")[0]).name) for found in seen.breaks] == [
        ("graph_break()", "test_explain.py")
    ]
    assert seen.count("found") == 2
    assert "graph break: graph_break() at " in str(seen)


def test_a_policy_that_does_not_fit_raises() -> None:
    model, args, kwargs = first_chunk()
    with pytest.raises(HeadforceError, match="HF-POLICY-SHAPE"):
        headforce.explain(
            model, *args, policy=Policy.loads("headforce: 0\nclasses: {a: drop()}\nlayers: {7: a}"), **kwargs
        )


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = ["explain", "examples/one_call.py:first_chunk"]
    text = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert "2 found, 0 refused, 2 excluded" in text.output
    result = CliRunner().invoke(main, [*arguments, "--policy", str(TINY_POLICY), "--json"], catch_exceptions=False)
    assert json.loads(result.output)["outlook"]["native"] == "span(6)"
    for wrong in ("examples/one_call.py", "examples/one_call.py:nothing", "nowhere.py:f"):
        assert CliRunner().invoke(main, ["explain", wrong]).exit_code == 2


def test_gradients_are_left_out() -> None:
    """A call that records them would be refused, and nobody who explains a call wants them."""
    model, args, kwargs = first_chunk()
    with torch.enable_grad():
        seen = headforce.explain(model, *args, **kwargs)
    assert (seen.count("found"), seen.sites[0].not_owned) == (2, "")


def test_a_preset_with_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    labels = "examples/labels/dummy_forcing.tiny.json"
    model, args, kwargs = first_chunk()
    assert headforce.explain(model, *args, policy="dummy_forcing", labels=labels, **kwargs).outlook is not None
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*labels"):
        headforce.explain(model, *args, labels=labels, **kwargs)
    command = ["explain", "examples/one_call.py:first_chunk", "--policy", "dummy_forcing", "--labels", labels]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
