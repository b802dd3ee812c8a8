"""Sessions: adoption, restore, models side by side, streams side by side, memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch._dynamo.backends import registry

import headforce
from examples.causal_wan import Rollout
from headforce import HeadforceError
from headforce.kvpass.shell import is_shell, physical_bytes
from headforce.policy import Policy

from .conftest import text, videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

EAGER = {"inner": "eager"}
A = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
B = Policy.loads("headforce: 0\nclasses: {b: sink(1)}\ndefault: b")


def rollout_of(model: torch.nn.Module) -> Rollout:
    return Rollout(torch.compile(model, backend="headforce", options=EAGER), model.config, (1000.0, 625.0))


def test_restore_leaves_the_model_as_it_was() -> None:
    model = wan()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    eager = videos(model, model.config, ([3] * 4,))
    session = headforce.prepare(model, policy=A)
    rollout = rollout_of(model)
    rollout.generate(text(model.config), [3] * 4)
    assert is_shell(rollout.kv_cache[0]["k"])
    session.restore()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not is_shell(rollout.kv_cache[0]["k"])
    rollout.model = model
    assert torch.equal(rollout.generate(text(model.config), [3] * 4), eager[0])
    session.restore()  # twice does no harm


def test_model_b_is_untouched_by_the_restore_of_a() -> None:
    models = [wan(0), wan(1)]
    sessions = [headforce.prepare(model, policy=policy) for model, policy in zip(models, (A, B), strict=True)]
    rollouts = [rollout_of(model) for model in models]
    for rollout, model in zip(rollouts, models, strict=True):
        rollout.generate(text(model.config), [3] * 3)
    sessions[0].restore()
    expected = videos(oracle_model(models[1], B), models[1].config, ([3] * 4,))
    assert relative(rollouts[1].generate(text(models[1].config), [3] * 4), expected[0]) < 1e-5
    sessions[1].restore()


def test_two_streams_of_one_model_do_not_share_state() -> None:
    model = wan()
    expected = videos(oracle_model(model, A), model.config, ([3] * 4, [3] * 4))
    with headforce.prepare(model, policy=A) as session:
        passes = [rollout_of(model).passes(text(model.config), [3] * 4, seed) for seed in (0, 1)]
        clean: list[list[torch.Tensor]] = [[], []]
        for pair in zip(*passes, strict=True):
            for stream, done in enumerate(pair):
                if done.clean:
                    clean[stream].append(done.x0)
        assert len(session.cache_sets) == 2
    for ours, theirs in zip(clean, expected, strict=True):
        assert relative(torch.cat(ours, dim=2), theirs) < 1e-5


def test_dropped_caches_free_their_pools() -> None:
    model = wan()
    with headforce.prepare(model, policy=A) as session:
        rollout = rollout_of(model)
        rollout.generate(text(model.config), [3] * 3)
        held = session.pool_bytes
        pool = weakref.ref(session.cache_sets[0].pool.k)
        rollout.kv_cache = None  # a pipeline that allocates anew for the next video
        rollout.generate(text(model.config), [3] * 3)
        gc.collect()
        assert session.pool_bytes == held
        assert pool() is None


def test_shells_take_almost_no_memory() -> None:
    model = wan(num_layers=4)
    with headforce.prepare(model, policy=A):
        rollout = rollout_of(model)
        rollout.generate(text(model.config), [3] * 3)
        assert all(is_shell(cache[name]) for cache in rollout.kv_cache for name in ("k", "v"))
        for cache in rollout.kv_cache:
            cache["k"].zero_()
        assert physical_bytes() <= 2 << 20


def test_preparing_twice_is_refused() -> None:
    model = wan()
    with headforce.prepare(model, policy=A), pytest.raises(HeadforceError, match="HF-PREPARED"):
        headforce.prepare(model, policy=B)


def test_a_cache_with_a_past_is_refused() -> None:
    model = wan()
    rollout = Rollout(model, model.config, (1000.0,))
    rollout.generate(text(model.config), [3] * 2)
    caches = {"kv_cache": rollout.kv_cache, "crossattn_cache": rollout.crossattn_cache, "current_start": 6 * 24}
    with headforce.prepare(model, policy=A), torch.no_grad():
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        with pytest.raises(HeadforceError, match="HF-ADOPT"):
            compiled(torch.zeros(1, 4, 3, 8, 12), torch.zeros(1, 3), text(model.config), **caches)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(HeadforceError, match="HF-ADAPTER"):
        headforce.prepare(torch.nn.Linear(2, 2), policy=A)


def test_a_policy_for_another_shape_is_refused() -> None:
    model = wan()
    tall = Policy.loads("headforce: 0\nclasses: {a: window(1)}\nlayers: {7: a}")
    with headforce.prepare(model, policy=tall), pytest.raises(HeadforceError, match=r"HF-POLICY-SHAPE.*layers\.7"):
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3],))


def test_a_policy_in_the_options_must_be_the_prepared_one() -> None:
    model = wan()
    with headforce.prepare(model, policy=A):
        same = torch.compile(model, backend="headforce", options={**EAGER, "policy": A})
        videos(same, model.config, ([3],))
        other = torch.compile(model, backend="headforce", options={**EAGER, "policy": B})
        with pytest.raises(HeadforceError, match="HF-OPTION"):
            videos(other, model.config, ([3],))


def test_a_horizon_is_kept() -> None:
    model = wan()
    short = Policy.loads("headforce: 0\nclasses: {a: everything()}\ndefault: a\nhorizon: 6")
    with headforce.prepare(model, policy=short), pytest.raises(HeadforceError, match="HF-HORIZON"):
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3] * 3,))


def test_the_backend_is_known_where_nothing_is_installed(monkeypatch):
    """As on a machine that has the checkout alone, without the entry point of an installed package."""
    torch._dynamo.list_backends()  # looks for entry points, once
    for known in (registry._BACKENDS, registry._COMPILER_FNS):
        monkeypatch.delitem(known, "headforce", raising=False)
    assert "headforce" not in torch._dynamo.list_backends(exclude_tags=())
    model = wan()
    with headforce.prepare(model, A) as session:
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3],))
        assert session.launches == [3, 3]
