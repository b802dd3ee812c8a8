"""Heads classified while a video is made, against softmax attention of the kept queries that is written down whole."""

import copy
from types import SimpleNamespace

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from examples.causal_wan.rope import rope_angles, rotate
from headforce.errors import HeadforceError
from headforce.kvpass.head_classes import HeadClasses
from headforce.kvpass.kept_queries import KeptQueries
from headforce.kvpass.layers import PassFacts
from headforce.lowering.state.sampling import sampled_rows
from headforce.lowering.stream import Stream
from headforce.policy import Chunk, Classify, Policy, Warmup, assignment, oracle, parse_rule
from headforce.presets import Labels, dummy_forcing

from .conftest import text, wan
from .oracle_model import OracleAttention, oracle_model
from .test_owned_identity import relative

pytestmark = pytest.mark.shares_graphs

LENGTHS = [3, 3, 3, 3]


def watched(model, policy):
    """An eager model of the warm-up that keeps queries, keys and what is read of every pass of every layer."""
    twin = oracle_model(model, policy)
    for block in twin.blocks:
        block.self_attn.__class__ = Watching
    return twin


class Watching(OracleAttention):
    def query(self, x):
        self.last_x = x
        return super().query(x)


def dense_masses(twin, classify, tokens):
    """[layer][head]: the probability on the first and on the middle frames, from scores of all rows by all keys."""
    first, middle = [], []
    for block in twin.blocks:
        attention = block.self_attn
        start, frames = attention.starts[-1], max(attention.frames) + 1 - attention.starts[-1]
        cos, sin = rope_angles(twin.rope.table, start, (frames, *twin.grid))
        q = rotate(attention.query(attention.last_x), cos, sin)[0].double()
        past = sorted(oracle.read(attention.policy.warmup.rule, None, attention_chunk(attention, frames), start))
        keys = torch.cat([attention.frames[f][0][0] for f in [*past, *range(start, start + frames)]]).double()
        rows = sampled_rows(classify.queries, classify.seed, frames * tokens)
        weights = torch.einsum("rhd,khd->hrk", q[rows], keys).mul(q.shape[-1] ** -0.5).softmax(-1).mean(1)
        by_frame = weights.unflatten(-1, (-1, tokens)).sum(-1)
        first.append(by_frame[:, : classify.first_frames].sum(-1).tolist())
        middle.append(by_frame[:, classify.first_frames : len(past)].sum(-1).tolist())
    return first, middle


def attention_chunk(attention, frames):
    return Chunk(len(attention.starts) - 1, attention.starts[-1], frames)


def classes_of(model, policy, lengths=LENGTHS, steps=(1000.0, 625.0), seed=0):
    """The classes that the heads get, and the video."""
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        video = Rollout(compiled, model.config, timesteps=steps).generate(text(model.config), lengths, seed=seed)
        (caches,) = session.cache_sets
        assert session.labels == Labels(tuple(map(tuple, caches.heads.classes)))
        return caches.heads.classes, video, session.pool_bytes, caches.stream


@pytest.mark.parametrize(("classify_at", "first_frames"), [(1, 1), (2, 3)])
def test_classes_are_those_of_attention_written_down_whole(classify_at, first_frames):
    """The mass of every head, and the joint assignment of all heads of the model."""
    policy = dummy_forcing(classify_at=classify_at, first_frames=first_frames, num_dummy=3, seed=5)
    model = wan(sink_size=1)
    plain = Policy({"a": policy.warmup.rule}, "a", warmup=policy.warmup)
    twin = watched(copy.deepcopy(model), plain)
    config = model.config
    twin.grid = config.grid
    Rollout(twin, config, timesteps=(1000.0, 625.0)).generate(text(config), LENGTHS[: classify_at + 1])
    first, middle = dense_masses(twin, policy.classify, config.tokens_per_frame)
    found, *_ = classes_of(model, policy)
    assert found == policy.classify.assign(first, middle)
    names = [name for layer in found for name in layer]
    assert names.count("dummy") == 3
    gains = assignment.normalised(*([m for layer in side for m in layer] for side in (first, middle)))
    lost = sorted(max(gain) for gain in gains)
    assert lost[3] - lost[2] > 1e-6, "too close a call to tell anything"


def test_what_follows_is_the_policy_with_those_classes():
    """Videos with given labels and with classified heads are the same, once the classes are."""
    policy = dummy_forcing(num_dummy=3)
    model = wan(sink_size=1)
    expected_model = copy.deepcopy(model)
    classes, video, held, _ = classes_of(model, policy)
    expected = Rollout(oracle_model(expected_model, policy.classified(classes)), model.config, (1000.0, 625.0))
    assert relative(video, expected.generate(text(model.config), LENGTHS)) < 1e-5
    frame = 2 * model.config.tokens_per_frame * model.config.head_dim * 4
    pages = {"sink": 1 + 3, "neighbor": 3 + 3, "dummy": 1 + 3}
    assert held == sum(pages[name] for layer in classes for name in layer) * frame


def test_classes_are_the_same_again_and_others_for_another_video():
    policy, model = dummy_forcing(num_dummy=3), wan(sink_size=1)
    one, video, *_ = classes_of(copy.deepcopy(model), policy)
    two, same, *_ = classes_of(copy.deepcopy(model), policy)
    assert (one, True) == (two, torch.equal(video, same))
    # The last pass wins: noisy passes before it change nothing but what it is made of.
    with headforce.prepare(model, policy=policy) as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        rollout = Rollout(compiled, model.config, timesteps=(1000.0,))
        found = []
        for seed in (0, 1, 0):  # a new video with the same caches is classified by itself
            rollout.generate(text(model.config), LENGTHS, seed=seed)
            found.append(session.cache_sets[0].heads.classes)
    assert found[0] == found[2]
    assert len(session.cache_sets) == 0


def test_two_streams_have_classes_of_their_own():
    policy, model = dummy_forcing(num_dummy=3), wan(sink_size=1)
    with headforce.prepare(model, policy=policy) as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        sides = [Rollout(compiled, model.config, timesteps=(1000.0,)) for _ in range(2)]
        runs = [side.passes(text(model.config, seed=i), LENGTHS, seed=i) for i, side in enumerate(sides)]
        for _ in zip(*runs, strict=True):
            pass
        both = [caches.heads.classes for caches in session.cache_sets]
    for i, classes in enumerate(both):
        alone = copy.deepcopy(model)
        with headforce.prepare(alone, policy=policy) as one:
            compiled = torch.compile(alone, backend="headforce", options={"inner": "eager"})
            Rollout(compiled, alone.config, timesteps=(1000.0,)).generate(text(alone.config, seed=i), LENGTHS, seed=i)
            assert one.cache_sets[0].heads.classes == classes


def test_a_stream_that_was_never_measured_is_refused():
    """A stream that has gone by the chunk that was to be measured."""
    policy = dummy_forcing(num_dummy=1)
    heads = HeadClasses(policy, KeptQueries(1), {}, parse_rule("span(9)"))

    stream = Stream(policy.undecided().bind(layers=1, heads=1))
    for chunk in range(4):
        stream.begin(3 * chunk, 3)
    with pytest.raises(HeadforceError, match="HF-CLASSIFY"):
        heads.before(PassFacts(12, 3, 4, 0, 99, ()), SimpleNamespace(stream=stream), None)


def test_what_a_policy_must_say():
    classes = {name: parse_rule("window(1)") for name in ("sink", "neighbor", "dummy")}
    warmup = Warmup(2, parse_rule("window(3)"))
    for changed, says in (
        ({"warmup": None}, "a chunk of the warm-up"),
        ({"warmup": Warmup(1, warmup.rule)}, "a chunk of the warm-up"),
        ({"default": "sink"}, "default beside classify"),
        ({"classes": {**classes, "sink": parse_rule("episodic(2)")}}, "which has state"),
        ({"classes": {"sink": classes["sink"]}}, "classify.middle"),
    ):
        given = {"classes": classes, "warmup": warmup, "classify": Classify(1)} | changed
        with pytest.raises(HeadforceError, match=says):
            Policy(**given)
    for changed in ({"chunk": 0}, {"dummies": 1.5}, {"queries": 0}, {"first": "dummy"}, {"seed": -1}):
        with pytest.raises(HeadforceError, match=r"HF-POLICY-VALUE.*classify"):
            Classify(**{"chunk": 1} | changed)
    with pytest.raises(HeadforceError, match="HF-CLASSIFY"):
        Policy(classes, warmup=warmup, classify=Classify(1, 9)).bind(layers=2, heads=4)


@pytest.mark.slow
def test_a_recache_of_everything_keeps_the_classes():
    """The pass begins at frame 0, and is no new video: not for the first layer, and not for the others."""
    policy, model = dummy_forcing(num_dummy=3), wan(sink_size=1)
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        rollout = Rollout(compiled, model.config, timesteps=(1000.0,))
        parts = [(text(model.config, seed=i), chunks) for i, chunks in enumerate(([3, 2], [3, 3]))]
        seen = []
        for done in rollout.prompts(parts, 0, lambda: session.switch("recache(12)")):
            seen.append((done.start, done.again, session.cache_sets[0].heads.classes))
            assert torch.isfinite(done.x0).all()
        classes = [its for start, _, its in seen if start >= 5]
        assert (0, True) in [(start, again) for start, again, _ in seen]
        assert classes[0] is not None
        assert all(its == classes[0] for its in classes)


def test_what_is_refused_before_anything_runs():
    model = wan(sink_size=1)
    with headforce.prepare(model, policy=dummy_forcing(num_dummy=500)):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        with pytest.raises(HeadforceError, match="HF-CLASSIFY"):
            Rollout(compiled, model.config, timesteps=(1000.0,)).generate(text(model.config), [3])
    for wrong in ({"dummies": float("nan")}, {"seed": 10**30}):
        with pytest.raises(HeadforceError, match="HF-POLICY-VALUE"):
            Classify(1, **wrong)
    classes = {name: parse_rule("window(1)") for name in ("sink", "neighbor", "dummy")}
    with pytest.raises(HeadforceError, match="HF-POLICY-VALUE"):
        Policy(classes, on_switch={"sink": "flush(2)"})
    with pytest.raises(HeadforceError, match="HF-POLICY-VALUE"):
        Policy(classes, classify={"chunk": 1})
    silent = Policy({**classes, "dummy": parse_rule("mute()")}, warmup=Warmup(2), classify=Classify(1))
    assert str(silent.undecided().classes["undecided"]) == "window(1) | window(1)"
