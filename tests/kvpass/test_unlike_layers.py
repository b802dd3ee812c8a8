"""What is learned from one layer or in one video is compared with the others, and not taken over where it differs."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import headforce
from examples.causal_wan import Rollout
from examples.causal_wan import rope as rope
from examples.causal_wan.attention import RMSNorm
from headforce import HeadforceError
from headforce.kvpass.capture.dict_cache import DictCache
from headforce.policy import Policy, parse_rule

from .conftest import text, wan
from .test_owned_identity import relative

pytestmark = pytest.mark.shares_graphs

CHUNKS = [3] * 4


@pytest.fixture(autouse=True)
def _many_graphs():
    """A test may compile more graphs than Dynamo makes of one function."""
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


NATIVE = Policy({})
KEPT = Policy({"a": parse_rule("sink(1) | window(1)")}, "a")
MOVED = Policy({"a": parse_rule("sink(1)@collapse(2) | window(1)")}, "a")
MERGED = Policy({"a": parse_rule("merge(2, height=2, width=2, last=2) | window(1)")}, "a")


def prepared(model, policy=NATIVE, mode="owned"):
    session = headforce.prepare(model, policy, mode=mode)
    session.compile(blocks="blocks", inner="eager")
    return session


def video(rollout, chunks=CHUNKS):
    return rollout.generate(text(rollout.config), chunks, seed=0)


def rollout_of(model, config=None):
    return Rollout(model, config or model.config, (1000.0,))


def table(theta, monkeypatch):
    """A RoPE table of another base."""
    monkeypatch.setattr(rope, "THETA", theta)
    return rope.rope_table(24, 1024)


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"), [pytest.param("sink_size", (1, 0), marks=pytest.mark.slow), ("window", (6, 4))]
)
def test_a_layer_that_reads_otherwise_is_refused(name, values):
    model = wan(num_layers=2)
    for block, value in zip(model.blocks, values, strict=True):
        setattr(block.self_attn, name, value)
    with prepared(model), pytest.raises(HeadforceError, match=r"HF-NATIVE.*layer 1"):
        video(rollout_of(model))


def test_a_layer_with_other_heads_is_refused(monkeypatch):
    model = wan(num_layers=2)
    own, dim = model.blocks[1].self_attn, model.config.dim
    width = dim // 2
    own.num_heads //= 2
    own.q, own.k, own.v, own.o = (nn.Linear(*size) for size in ((dim, width),) * 3 + ((width, dim),))
    own.norm_q, own.norm_k = RMSNorm(width, 1e-6), RMSNorm(width, 1e-6)
    prepare_caches = Rollout._prepare_caches

    def narrow(rollout, context):
        prepare_caches(rollout, context)
        cache = rollout.kv_cache[1]
        cache["k"], cache["v"] = (cache[name][:, :, :2].clone() for name in "kv")

    monkeypatch.setattr(Rollout, "_prepare_caches", narrow)
    with prepared(model), pytest.raises(HeadforceError, match=r"HF-SHAPE.*layer 1: found 2 heads; needed 4"):
        video(rollout_of(model))


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_layer_that_turns_otherwise_is_refused_where_that_matters(mode, monkeypatch):
    model = wan(sink_size=1, num_layers=2)
    own = model.blocks[1].self_attn
    own.register_buffer("table", table(50.0, monkeypatch), persistent=False)
    forward = type(own).forward
    other = type("Other", (type(own),), {"forward": lambda self, x, rope, *rest: forward(self, x, self.table, *rest)})
    own.__class__ = other
    with prepared(model, KEPT, mode):
        kept = video(rollout_of(model))
    assert kept.isfinite().all()
    with prepared(model, MOVED, mode), pytest.raises(HeadforceError, match=r"HF-ROPE.*layer 1"):
        video(rollout_of(model))


# --- videos -------------------------------------------------------------------------------------------------------


def test_a_sink_that_changes_between_videos():
    model = wan()
    other = copy.deepcopy(model)
    for block in other.blocks:
        block.self_attn.sink_size = 1
    expected = [video(rollout_of(copy.deepcopy(one))) for one in (model, other)]
    assert relative(*expected) > 1e-3
    with prepared(model):
        rollout = rollout_of(model)
        assert relative(video(rollout), expected[0]) < 1e-5
        for block in model.blocks:
            block.self_attn.sink_size = 1
        assert relative(video(rollout), expected[1]) < 1e-5


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_table_that_changes_between_videos(mode, monkeypatch):
    model = wan(sink_size=1)
    with prepared(model, MOVED, mode):
        rollout = rollout_of(model)
        first = video(rollout)
        model.rope.table = table(50.0, monkeypatch)
        second = video(rollout)
        assert relative(second, first) > 1e-3
        assert torch.equal(second, video(rollout_of(model)))  # with caches of its own


@pytest.mark.slow
def test_frames_of_another_form_between_videos():
    model = wan()
    config = copy.copy(model.config)
    object.__setattr__(config, "latent_height", model.config.latent_width)
    object.__setattr__(config, "latent_width", model.config.latent_height)
    with prepared(model, MERGED):
        rollout = rollout_of(model)
        video(rollout)
        rollout.config = config
        assert torch.equal(video(rollout), video(rollout_of(model, config)))


# --- caches that nobody uses any more -----------------------------------------------------------------------------


def test_caches_that_nobody_uses_are_not_filled_again(monkeypatch):
    """Whole caches may not fit beside those of the next video."""
    model, given = wan(num_layers=2), []
    give_back = DictCache.give_back
    monkeypatch.setattr(DictCache, "give_back", lambda self, *pair: given.extend(pair) or give_back(self, *pair))
    with prepared(model, KEPT) as session:
        video(rollout_of(model))
        gc.collect()
        rollout = rollout_of(model)
        next(rollout.passes(text(model.config), CHUNKS, seed=0))
        assert len(session.cache_sets) == 1
        assert [t.numel() for t in given] == [0] * 4
        given.clear()
    assert [t.shape for t in given] == [rollout.kv_cache[0]["k"].shape] * 4


def test_a_cache_that_gets_new_tensors_leaves_its_stream():
    model = wan()
    with prepared(model, KEPT) as session:
        rollout = rollout_of(model)
        for _ in range(3):
            video(rollout)
            for cache in rollout.kv_cache:
                cache["k"], cache["v"] = (torch.zeros(cache[name].shape) for name in "kv")
        video(rollout)
        assert len(session.cache_sets) == 1
