"""Sessions: adoption, restore, models side by side, streams side by side, memory."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch._dynamo.backends import registry

import headforce
from examples.causal_wan import Rollout
from examples.one_call import first_chunk
from headforce import HeadforceError
from headforce.kvpass import owned_caches
from headforce.kvpass.capture import LayerCache
from headforce.kvpass.capture.boxes import IndexBox
from headforce.kvpass.capture.dict_cache import DictCache
from headforce.kvpass.layers import Layer, owned, viewed
from headforce.kvpass.lower import MOST_SITES, _target_of
from headforce.kvpass.options import read_options
from headforce.kvpass.owned_caches import OwnedCaches
from headforce.kvpass.running import active_session
from headforce.kvpass.shell import is_shell, make_shell, physical_bytes
from headforce.policy import Policy, parse_rule

from .conftest import text, videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

pytestmark = pytest.mark.shares_graphs

EAGER = {"inner": "eager"}
A = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
B = Policy.loads("headforce: 0\nclasses: {b: sink(1)}\ndefault: b")


def rollout_of(model: torch.nn.Module) -> Rollout:
    return Rollout(torch.compile(model, backend="headforce", options=EAGER), model.config, (1000.0, 625.0))


@pytest.mark.slow
def test_without_mapped_memory_the_models_cache_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan()
    expected = Rollout(oracle_model(model, A), model.config, (1000.0, 625.0)).generate(text(model.config), [3] * 4)
    monkeypatch.setenv("HEADFORCE_SHELLS", "off")
    with headforce.prepare(model, policy=A):
        rollout = rollout_of(model)
        assert relative(rollout.generate(text(model.config), [3] * 4), expected) < 1e-5
        assert not is_shell(rollout.kv_cache[0]["k"])
    monkeypatch.setenv("HEADFORCE_SHELLS", "no")
    with pytest.raises(HeadforceError, match=r"HF-OPTION.*on or off"):
        make_shell((1,))


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


@pytest.mark.slow
def test_a_pass_that_is_interrupted_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is no error that hooks hear of. The session does not go on with it, and the pass can run again."""
    model = wan(num_layers=2)
    expected = videos(oracle_model(model, A), model.config, ([3] * 3,))
    whole = OwnedCaches.enter

    def interrupted(caches: OwnedCaches, layer: Layer, *about: object) -> None:
        whole(caches, layer, *about)
        if layer.number == 1:
            monkeypatch.undo()
            raise KeyboardInterrupt

    with headforce.prepare(model, policy=A):
        rollout = rollout_of(model)
        monkeypatch.setattr(OwnedCaches, "enter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rollout.generate(text(model.config), [3] * 3, seed=0)
        assert active_session() is None
        assert relative(rollout.generate(text(model.config), [3] * 3, seed=0), expected[0]) < 1e-5


@pytest.mark.slow
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


def test_a_score_that_nobody_knows_is_refused_before_anything_runs() -> None:
    rules = "select(1, segments=4, source=evicted(recent), score={}) | window(1) as recent"
    for names in (("qk", "novelty"), ("novelty", "qk")):
        policy = Policy({str(i): parse_rule(rules.format(name)) for i, name in enumerate(names)}, default="0")
        with pytest.raises(HeadforceError, match=r"HF-SCORE.*'novelty'"):
            headforce.prepare(wan(), policy=policy)


def test_a_policy_for_another_shape_is_refused() -> None:
    model = wan()
    tall = Policy.loads("headforce: 0\nclasses: {a: window(1)}\nlayers: {7: a}")
    with headforce.prepare(model, policy=tall), pytest.raises(HeadforceError, match=r"HF-POLICY-SHAPE.*layers\.7"):
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3],))


@pytest.mark.slow
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
    model = wan(num_layers=2)
    with headforce.prepare(model, A) as session:
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3],))
        assert session.launches == [3, 3]


# --- calls that are wrong, and sessions that are over -----------------------------------------------------------


def test_a_session_that_was_restored_is_over() -> None:
    session = headforce.prepare(wan(), policy=A)
    session.restore()
    for use in (session.compile, session.switch):
        with pytest.raises(HeadforceError, match="HF-PREPARED"):
            use()


def test_a_session_outlives_its_model() -> None:
    model = wan()
    session = headforce.prepare(model, policy=A)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert "CausalWan, owned mode" in str(session)
    with pytest.raises(HeadforceError, match="HF-PREPARED"):
        session.model  # noqa: B018
    session.restore()


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_what_a_model_held_goes_with_it(mode: str) -> None:
    """Caches are registered by their memory, for which nobody asks any more."""
    model = wan()
    session = headforce.prepare(model, policy=A, mode=mode)
    session.compile(inner="eager")
    rollout = Rollout(model, model.config, (1000.0,))
    rollout.generate(text(model.config), [3])
    known, before = (owned, viewed)[mode == "view"], weakref.ref(session.cache_sets[0])
    count = len(known)
    gone = weakref.ref(model)
    del model, rollout, session
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None
    gc.collect()  # what the model was the last to hold
    assert before() is None
    assert len(known) < count


def test_restore_without_room_for_the_models_caches_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan(num_layers=2)
    session = headforce.prepare(model, policy=A)
    session.compile(inner="eager")
    rollout = Rollout(model, model.config, (1000.0,))
    rollout.generate(text(model.config), [3])
    zeros = owned_caches._zeros

    def full(shell: torch.Tensor, whole: bool) -> torch.Tensor:
        if whole:
            assert session.pool_bytes == 0  # room was made first
            raise torch.OutOfMemoryError
        return zeros(shell, whole)

    monkeypatch.setattr(owned_caches, "_zeros", full)
    with pytest.raises(torch.OutOfMemoryError):
        session.restore()
    monkeypatch.undo()
    assert [cache["k"].shape for cache in rollout.kv_cache] == [(0,)] * 2
    with headforce.prepare(model, policy=A) as again:
        again.compile(inner="eager")
        Rollout(model, model.config, (1000.0,)).generate(text(model.config), [3])


def test_caches_that_are_given_back_in_inference_mode_are_ordinary_tensors() -> None:
    model = wan()
    with torch.inference_mode():
        session = headforce.prepare(model, policy=A)
        session.compile(inner="eager")
        rollout = Rollout(model, model.config, (1000.0,))
        rollout.generate(text(model.config), [3])
        session.restore()
    assert not any(cache[name].is_inference() for cache in rollout.kv_cache for name in ("k", "v"))


def test_restore_in_the_middle_of_a_video_empties_its_caches() -> None:
    """Else their indices would say that there is something in them."""
    model = wan()
    session = headforce.prepare(model, policy=A)
    session.compile(inner="eager")
    rollout = Rollout(model, model.config, (1000.0,))
    rollout.generate(text(model.config), [3])
    session.restore()
    (cache,) = rollout.kv_cache
    assert (cache["global_end_index"], cache["local_end_index"]) == (0, 0)


@pytest.mark.parametrize("form", [7, torch.tensor([7]), IndexBox(7)])
def test_indices_of_every_form_are_set_back(form: object) -> None:
    cache = {"k": torch.ones(1), "v": torch.ones(1), "global_end_index": form, "local_end_index": form}
    assert DictCache(cache).forget()
    assert [getattr(cache[name], "value", cache[name]) for name in ("global_end_index", "local_end_index")] == [0, 0]


def test_that_caches_without_indices_are_emptied_is_said(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    model, args, kwargs = first_chunk()
    monkeypatch.setattr(DictCache, "forget", LayerCache.forget)
    with headforce.prepare(model, policy=A) as session, torch.no_grad():
        session.compile(inner="eager")
        model(*args, **kwargs)
    assert "in the middle of a video" in caplog.text


def test_a_call_with_too_few_caches_breaks_no_account() -> None:
    model, args, kwargs = first_chunk()
    with headforce.prepare(model, policy=A) as session, torch.no_grad():
        short = {**kwargs, "kv_cache": copy.deepcopy(kwargs["kv_cache"][:1])}
        with pytest.raises((HeadforceError, ValueError, IndexError)):
            model(*args, **short)
        with pytest.raises(HeadforceError, match="HF-EAGER"):
            model(*args, **kwargs)
        assert session.launches == [0, 0]
        assert "2 streams" in str(session)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda caches: caches[0],
        lambda caches: [cache["k"] for cache in caches],
        lambda caches: [{"key": cache["k"], "value": cache["v"]} for cache in caches],
        lambda caches: [caches[0], {**caches[1], "v": None}],
        lambda caches: 3,
    ],
    ids=["one dict", "tensors", "other names", "no v", "a number"],
)
def test_caches_of_another_form_are_refused(wrong) -> None:
    model, args, kwargs = first_chunk()
    with (
        headforce.prepare(model, policy=A) as session,
        torch.no_grad(),
        pytest.raises(HeadforceError, match=r"HF-ADOPT.*with tensors k and v"),
    ):
        model(*args, **{**kwargs, "kv_cache": wrong(kwargs["kv_cache"])})
    assert session.cache_sets == []


@pytest.mark.parametrize("blocks", ["blcks", "blocks.0.norm1", 3])
def test_blocks_must_be_there(blocks) -> None:
    model = wan()
    with headforce.prepare(model, policy=A) as session, pytest.raises(HeadforceError, match=r"HF-OPTION.*blocks"):
        session.compile(blocks=blocks)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"target": 3}, "target"),
        ({"inner_mode": "max-autotone"}, "inner_mode.*did you mean 'max-autotune'"),
        ({"inner_mode": 3}, "inner_mode"),
        ({"inner_options": "max_autotune"}, "inner_options"),
        ({"inner_options": {"max_autotone": True}}, "inner_options.*did you mean 'max_autotune'"),
        ({"inner": "eager", "inner_mode": "max-autotune"}, "inner_mode"),
        ({"inner": "eager", "inner_options": {"max_autotune": True}}, "inner_options"),
        ({"policy": 3}, "policy"),
        ({"policy": A, "labels": "heads.json"}, "labels"),
    ],
)
def test_options_that_do_not_exist(options, place) -> None:
    with pytest.raises(HeadforceError, match=f"HF-OPTION.*{place}"):
        read_options(None, options)


def test_options_that_do() -> None:
    assert read_options("max-autotune", None).inner_mode == "max-autotune"
    assert read_options(None, {"inner_options": {"max_autotune": True}}).inner_options == {"max_autotune": True}
    assert read_options(None, {"inner": "aot_eager", "inner_options": {"its own": 1}}).inner == "aot_eager"


@pytest.mark.parametrize("policy", [{}, {"policy": A}])
def test_graphs_are_captured_for_prepared_models_alone(policy) -> None:
    compiled = torch.compile(
        torch.nn.Linear(2, 2), backend="headforce", options={**EAGER, "cudagraphs": True, **policy}
    )
    with pytest.raises(HeadforceError, match="HF-CUDAGRAPHS"):
        compiled(torch.zeros(1, 2))


def test_the_number_of_sites_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MOST_SITES, "x")
    with pytest.raises(HeadforceError, match=f"HF-OPTION.*{MOST_SITES}"):
        _target_of(0, "sdpa")
