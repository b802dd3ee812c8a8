"""Several prompts in one video: compiled and owned equals eager attention that reads what the oracle names."""

import copy

import pytest
import torch

import examples.causal_wan as example
import headforce
from headforce.demo.reference import Control, Oracle, install_oracle
from headforce.errors import HeadforceError
from headforce.policy import Policy, parse_answer
from headforce.presets import load_presets, longlive

from .conftest import text, wan
from .presets import PRESETS
from .test_owned_identity import relative

CHUNKS = ([3, 3, 3], [3], [3, 3])
ANSWERS = {
    "deep_forcing": ("flush(1, stores=yes)", "keep()"),
    "self_forcing": ("flush(2)", "cut(5)"),
    "longlive": ("recache(5)", "recache(5, keep_sink=no)"),
    "dummy_forcing": ("recache(5)", "flush(1)"),
    "head_forcing": ("flush(2, stores=yes)", "recache(3)"),
    "forcing_kv": ("recache(1)", "keep()"),
    "pyramid_forcing": ("flush(3, stores=yes)", "flush(0)"),
}
"""What all classes of a preset do at the first and at the second switch."""


def rollouts(model, policy, prompts, *answers):
    """For every pass, the clean frames of the compiled and of the eager side. `answers`: to each switch."""
    twin = copy.deepcopy(model)
    config = model.config
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        native = session.native(config.cache_frames * config.tokens_per_frame, config.tokens_per_frame)
        shape = {"layers": config.num_layers, "heads": config.num_heads, "tokens": config.tokens_per_frame}
        bound = policy.bind(native=native, **shape)

        def stream():
            return session.cache_sets[-1].stream

        def record(layer, head):
            memory = stream().lane(layer, head).memory
            return memory.explained() if memory else None

        def amended(layer, head):
            return stream().amended.get(bound.rules[layer][head].text)

        install_oracle(twin, Oracle(bound, example, record, Control(0, 0), amended))
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        again, waiting = [], list(answers)

        def switched():
            again.append(session.switch(waiting.pop(0)))
            return again[-1]

        one = example.Rollout(compiled, config, timesteps=(1000.0,)).prompts(prompts, 0, switched)
        other = example.Rollout(twin, config, timesteps=(1000.0,)).prompts(prompts, 0, lambda: again[-1])
        for a, b in zip(one, other, strict=True):
            yield a.x0, b.x0, session


@pytest.mark.slow
def test_three_prompts_equal_the_oracle_under_every_preset():
    """In one test: all of them run the same compiled graphs."""
    model = wan(sink_size=1, num_layers=2)
    prompts = [(text(model.config, seed=i), chunks) for i, chunks in enumerate(CHUNKS)]
    for name, policy in PRESETS.items():
        for one, other, _ in rollouts(copy.deepcopy(model), policy, prompts, *ANSWERS[name]):
            assert relative(one, other) < 1e-5, name
    assert set(PRESETS) == set(load_presets())

    # What a class answers, given by the policy or by the call, changes the video, and so does the new text: with the
    # keys and values of the old one the videos would be alike.
    kept = PRESETS["longlive"]
    policy = Policy(kept.classes, kept.default, on_switch={kept.default: parse_answer("flush(2)")})
    found = {}
    for case, (rule, answer, last) in {
        "kept": (kept, "keep()", 1),
        "flushed": (kept, "flush(2)", 1),
        "by the policy": (policy, None, 1),
        "other text": (kept, "keep()", 2),
    }.items():
        parts = [(text(model.config, seed=0), [3, 3]), (text(model.config, seed=last), [3])]
        *_, (one, other, _) = rollouts(copy.deepcopy(model), rule, parts, answer)
        assert relative(one, other) < 1e-5
        found[case] = one
    assert torch.equal(found["flushed"], found["by the policy"])
    assert relative(found["kept"], found["flushed"]) > 1e-3
    assert relative(found["kept"], found["other text"]) > 1e-3


def test_the_session_empties_the_text_caches():
    """Also where the caller forgets to, as pipelines of one prompt do."""
    model = wan(sink_size=1)
    with headforce.prepare(model, policy=longlive(window=9)) as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        rollout = example.Rollout(compiled, model.config, timesteps=(1000.0,))
        list(rollout.passes(text(model.config), [3]))
        assert all(cache["is_init"] for cache in rollout.crossattn_cache)
        assert session.switch() == 0
        assert not any(cache["is_init"] for cache in rollout.crossattn_cache)


def test_view_mode_refuses_a_switch():
    model = wan(sink_size=1)
    with (
        headforce.prepare(model, policy=longlive(window=9), mode="view") as session,
        pytest.raises(HeadforceError, match="HF-VIEW"),
    ):
        session.switch()


def test_before_the_first_pass():
    model = wan(sink_size=1)
    with (
        headforce.prepare(model, policy=longlive(window=9)) as session,
        pytest.raises(HeadforceError, match="HF-CLOCK"),
    ):
        session.switch()


def two_videos(session, model):
    """Two streams: one that has 12 frames, and one that has 3."""
    session.compile(blocks="blocks", inner="eager")
    streams = [example.Rollout(model, model.config, timesteps=(1000.0,)) for _ in range(2)]
    for rollout, chunks in zip(streams, ([3] * 4, [3]), strict=True):
        rollout.generate(text(model.config), chunks)
    return streams


@pytest.mark.slow
def test_a_refused_switch_leaves_every_stream_as_it_was():
    """A cut that the longer video does not allow is not made in the shorter one, whichever comes first."""
    model = wan()
    near = Policy.loads("headforce: 1\nclasses: {a: sink(1) | window(1)}\ndefault: a\nposition_range: 20")
    with headforce.prepare(model, policy=near) as session:
        held = two_videos(session, model)
        for _ in range(2):
            session.cache_sets.reverse()
            with pytest.raises(HeadforceError, match="HF-POSITION"):
                session.switch("cut(12)")
            assert [caches.stream.amended for caches in session.cache_sets] == [{}, {}]
            assert not any(caches.stream.closed for caches in session.cache_sets)
        assert all(rollout.crossattn_cache[0]["is_init"] for rollout in held)


@pytest.mark.slow
def test_one_stream_alone_is_switched():
    model = wan()
    with headforce.prepare(model, policy=Policy({})) as session:
        long, short = two_videos(session, model)
        assert session.switch("recache(12)", kv_cache=short.kv_cache) == 3
        assert [caches.stream.closed for caches in session.cache_sets] == [False, True]
        assert [caches[0]["is_init"] for caches in (long.crossattn_cache, short.crossattn_cache)] == [True, False]
        assert session.switch("recache(12)") == 12  # nobody says which videos are over
        with pytest.raises(HeadforceError, match=r"HF-ADOPT.*no stream"):
            session.switch(kv_cache=[{}])


def test_an_answer_is_an_answer():
    with (
        headforce.prepare(wan(), policy=Policy({})) as session,
        pytest.raises(HeadforceError, match=r"HF-OPTION.*flush"),
    ):
        session.switch(3)
