"""Probing: a model runs as it is, and what its heads attend to is that of scores that are all there, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from examples.causal_wan import attention as wan_attention
from headforce import HeadforceError
from headforce.kvpass.layers import viewed
from headforce.lowering import measuring
from headforce.lowering.state.sampling import sampled_rows
from tests.kvpass.conftest import text, wan

from . import planted

EAGER = {"inner": "eager"}
STEPS = (1000.0,)
LENGTHS = [3, 3, 3]
"""With a window of 6 frames: filling, full, and evicting."""
BATCH = 2


@pytest.fixture(scope="module")
def model():
    """One model, so that its graphs are captured once for all tests here."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield wan(sink_size=1)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def compiled(model):
    return torch.compile(model, backend="headforce", options=EAGER, fullgraph=True)


@pytest.fixture(autouse=True)
def nothing_watched() -> Iterator[None]:
    viewed.clear()
    yield
    viewed.clear()


class Seen:
    """Queries and keys of every call of self-attention of an eager model, in order."""

    def __init__(self, monkeypatch, tokens, module=wan_attention):
        self.calls = []
        plain = module.attend

        def attend(q, k, v):
            if k.shape[1] % tokens == 0 and q.shape[1] % tokens == 0 and k.shape[1] >= q.shape[1]:
                self.calls.append((q.clone(), k.clone()))
            return plain(q, k, v)

        monkeypatch.setattr(module, "attend", attend)


def dense(q, k, rows, tokens, groups):
    """[3, B, H, G, F]: mass, mean score and entropy of the sampled rows, from all scores at once."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q[:, rows].double(), k.double()) * q.shape[-1] ** -0.5
    p = scores.softmax(-1)
    by_frame = [x.unflatten(-1, (-1, tokens)) for x in (p, scores, -torch.xlogy(p, p))]
    sums = torch.stack([by_frame[0].sum(-1), by_frame[1].mean(-1), by_frame[2].sum(-1)])
    return sums.unflatten(3, (groups, -1)).mean(4)


def rollout(model, config, lengths=LENGTHS, seed=0):
    return Rollout(model, config, STEPS).generate(text(config, BATCH), lengths, seed=seed)


def recorded(model, compiled, lengths=LENGTHS, **options):
    """The video of a probed model, and the record of it."""
    with headforce.probe(model, **options) as probe:
        video = rollout(compiled, model.config, lengths)
        assert probe.misses == 0
        assert probe.launches == [len(lengths) * (len(STEPS) + 1)] * model.config.num_layers
        (record,) = probe.recorder.videos
    return video, record


def check(record, seen, layers, tokens, share, seed, by_query, tolerance):
    """Every pass and layer of a record against the calls of the eager model."""
    assert len(seen.calls) == len(record.passes) * layers
    for number, passed in enumerate(record.passes):
        frames = passed.chunk.frames
        rows = sampled_rows(share, seed, frames * tokens, frames)
        for layer in range(layers):
            q, k = seen.calls[number * layers + layer]
            assert k.shape[1] == len(passed.keys) * tokens
            expected = dense(q, k, rows, tokens, frames if by_query else 1)
            torch.testing.assert_close(passed.statistics[layer].double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("by_query", "share"), [(False, 0.25), (True, 1.0)])
def test_statistics_are_those_of_attention_written_down_whole(model, compiled, monkeypatch, by_query, share):
    seen = Seen(monkeypatch, model.config.tokens_per_frame)
    eager = rollout(model, model.config)
    monkeypatch.undo()
    video, record = recorded(model, compiled, by_query=by_query, queries=share, seed=3)
    assert torch.equal(video, eager)
    assert not torch._dynamo.utils.counters["graph_break"]
    check(record, seen, 1, model.config.tokens_per_frame, share, 3, by_query, 1e-5)
    starts = [(p.chunk.index, p.chunk.start, p.step) for p in record.passes]
    assert starts == [(i, s, step) for i, s in enumerate((0, 3, 6)) for step in (0, 1)]
    groups = 3 if by_query else 1
    assert record.passes[-1].keys == (0, 4, 5, 6, 7, 8)
    assert record.passes[-1].statistics[0].shape == (3, BATCH, 4, groups, 6)
    torch.testing.assert_close(record.passes[-1].statistics[0][0].sum(-1), torch.ones(BATCH, 4, groups))


@pytest.mark.slow
def test_inductor_neither_drops_the_probe_nor_changes_with_it(monkeypatch):
    """Outputs are bit for bit those of the same compiler without a probe."""
    model = planted.planted(layers=1, each=1)
    seen = Seen(monkeypatch, planted.TOKENS, planted)
    planted.rollout(model, chunks=2)
    monkeypatch.undo()
    model.compile(backend="inductor", fullgraph=True)
    expected = planted.rollout(model, chunks=2)
    with headforce.probe(model, queries=0.5) as probe:
        probe.compile()
        assert torch.equal(planted.rollout(model, chunks=2), expected)
        assert (probe.misses, probe.launches) == (0, [2])
    (record,) = probe.recorder.videos
    check(record, seen, 1, planted.TOKENS, 0.5, 0, False, 1e-5)


def test_samples_depend_on_their_seed_alone(model, compiled):
    found = []
    for seed, state in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        _, record = recorded(model, compiled, [3, 3], queries=0.2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(torch.cat([s.flatten() for p in record.passes for s in p.statistics.values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_every_frame_has_as_many_rows_in_a_sample():
    for share, count in ((0.25, 6), (0.01, 1), (1.0, 24)):
        rows = sampled_rows(share, 0, 3 * 24, 3)
        assert torch.bincount(rows // 24).tolist() == [count] * 3
        assert rows.unique().equal(rows)


def test_blocks_of_keys_of_any_size_give_the_same(model, compiled, monkeypatch):
    _, whole = recorded(model, compiled)
    monkeypatch.setattr(measuring, "SCORES", 1)
    monkeypatch.setattr(measuring, "LEAST", 7)
    _, parts = recorded(model, compiled)
    for one, other in zip(whole.passes, parts.passes, strict=True):
        for layer, statistics in one.statistics.items():
            torch.testing.assert_close(statistics, other.statistics[layer], rtol=1e-5, atol=1e-5)


def test_what_is_kept_does_not_grow_with_the_tokens_of_a_frame(model, compiled):
    _, record = recorded(model, compiled, [3, 3])
    kept = sum(s.numel() for p in record.passes for s in p.statistics.values())
    assert kept == 2 * 3 * BATCH * 4 * (3 + 6)  # passes, statistics, videos, heads, frames of two chunks


def test_videos_are_told_apart(model, compiled):
    """One after the other in the same caches, and side by side in two streams."""
    prompt = text(model.config, BATCH)
    with headforce.probe(model) as probe:
        one, other = Rollout(compiled, model.config, STEPS), Rollout(compiled, model.config, STEPS)
        one.generate(prompt, [3, 3], seed=0)
        one.generate(prompt, [3], seed=1)
        for _ in zip(other.passes(prompt, [3], 1), one.passes(prompt, [3], 2), strict=True):
            pass
        videos = probe.recorder.videos
        assert [len(video.passes) for video in videos] == [4, 2, 2, 2]
        last = [v.passes[-1].statistics[0] for v in videos]
        assert torch.equal(last[1], last[2])
        assert not torch.equal(last[1], last[3])
        probe.recorder.clear()
        one.generate(prompt, [3], seed=1)
        assert torch.equal(probe.recorder.videos[0].passes[-1].statistics[0], last[1])


def test_passes_that_were_not_compiled_are_counted_and_the_model_is_left_as_it_was(model):
    hooks = len(model._forward_pre_hooks)
    probe = headforce.probe(model)
    rollout(model, model.config, [3])
    assert probe.misses == 2
    assert probe.recorder.videos == []
    with pytest.raises(HeadforceError, match="HF-PREPARED"):
        headforce.probe(model)
    probe.restore()
    assert len(model._forward_pre_hooks) == hooks
    for share in (0, 1.5):
        with pytest.raises(HeadforceError, match="HF-OPTION"):
            headforce.probe(model, queries=share)


def test_a_probe_is_a_variant_of_the_graphs_that_are_there(model, compiled):
    with headforce.prepare(model, policy=headforce.Policy({}), mode="view"):
        expected = rollout(compiled, model.config)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    video, record = recorded(model, compiled)
    assert torch.equal(video, expected)
    assert len(record.passes) == 6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
