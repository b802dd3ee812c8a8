"""Owned mode under policies: compiled equals eager attention that reads exactly the oracle's frames."""

from __future__ import annotations

import pytest
import torch

import headforce
from examples.causal_wan import allocate_crossattn_cache, allocate_kv_cache
from headforce.policy import Policy

from .conftest import videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

pytestmark = pytest.mark.shares_graphs

LENGTHS = ([3] * 6, [3] * 3)
TOLERANCE = 1e-5

POLICIES = {
    "layers and heads differ": """
        headforce: 0
        classes:
          a: sink(1) | window(1)
          b: sink(1) | stride(4, phase=0, last=2) | window(2)
          c: drop()
          d: window(5)
        heads: {0: {a: [0, 2], b: [1], c: [3]}, 1: {c: [0], d: [1, 3], a: [2]}}
        """,
    "collapsed and clamped": """
        headforce: 0
        classes: {a: sink(1)@collapse(3) | window(1), b: sink(2)@clamp(6) | window(2)@clamp(2)}
        default: a
        heads: {1: {b: [0, 3]}}
        """,
    "phase of the query": """
        headforce: 0
        classes: {wave: 'sink(1)@collapse(5) | stride(3, phase="query", last=2)@collapse(5) | window(1)'}
        default: wave
        """,
    "contiguous, with a warm-up": """
        headforce: 0
        classes: {near: '(sink(1) | stride(3, phase=0, last=2) | window(1))@contiguous'}
        default: near
        layers: {0: near}
        warmup: {chunks: 2, rule: window(3)}
        """,
    "frames outlive the model's own window": """
        headforce: 0
        classes: {all: everything(), last: window(1)}
        default: last
        heads: {0: {all: [1]}, 1: {all: [0, 3]}}
        horizon: 18
        """,
}


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compiled_equals_eager_masked_to_the_oracle(batch: int) -> None:
    model = wan(num_layers=2)
    compiled = torch.compile(model, backend="headforce", options={"inner": "eager"}, fullgraph=True)
    for name, written in POLICIES.items():
        policy = Policy.loads(written)
        expected = videos(oracle_model(model, policy), model.config, LENGTHS, batch)
        with headforce.prepare(model, policy=policy, verify="plan") as session:
            result = videos(compiled, model.config, LENGTHS, batch)
            assert session.launches == [9 * 3] * 2, name
        for ours, theirs in zip(result, expected, strict=True):
            assert relative(ours, theirs) < TOLERANCE, name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 5  # and policies share them


def test_the_tolerance_would_show_one_dropped_frame() -> None:
    policy = Policy.loads(POLICIES["layers and heads differ"])
    model = wan()

    def without_the_sink(head: int, read: dict[int, int]) -> dict[int, int]:
        return {f: p for f, p in read.items() if (head, f) != (2, 0)}

    whole = videos(oracle_model(model, policy), model.config, LENGTHS)
    dropped = videos(oracle_model(model, policy, without_the_sink), model.config, LENGTHS)
    assert all(relative(a, b) > 10 * TOLERANCE for a, b in zip(dropped, whole, strict=True))


def test_swapped_layers_would_show() -> None:
    policy = Policy.loads(POLICIES["layers and heads differ"])
    swapped = Policy(policy.classes, heads={0: policy.heads[1], 1: policy.heads[0]})
    model = wan()
    whole = videos(oracle_model(model, policy), model.config, LENGTHS)
    other = videos(oracle_model(model, swapped), model.config, LENGTHS)
    assert all(relative(a, b) > 10 * TOLERANCE for a, b in zip(other, whole, strict=True))


def test_pool_bytes_are_capacity_and_current_chunk_exactly() -> None:
    policy = Policy.loads(POLICIES["layers and heads differ"])
    model = wan(num_layers=2)
    with headforce.prepare(model, policy=policy) as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        videos(compiled, model.config, LENGTHS)
        frames = (2 * 2 + 5 + 0) + (0 + 2 * 5 + 2)  # a keeps 2 frames, b 5, c none, d 5
        current = 2 * 4 * 3
        config = model.config
        assert session.pool_bytes == (frames + current) * 2 * config.tokens_per_frame * config.head_dim * 4


def test_episodic_memory_in_a_compiled_model() -> None:
    """Stores are filled while the model runs; replayed by the oracle, the record gives the same plans."""
    policy = Policy.loads("""
        headforce: 0
        classes:
          memory: sink(1) | episodic(3, source=evicted(window), write=novel(0.99), evict=least_novel) | window(2)
          last: window(1)
        default: last
        heads: {0: {memory: [1]}, 1: {memory: [0, 3]}}
        """)
    model = wan(num_layers=2)
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        first = videos(compiled, model.config, ([3] * 6, [3] * 6))
        stream = session.cache_sets[0].stream
        held = [lane.memory.held["episodic"] for lane in stream.lanes if lane.memory is not None]
        assert len(held) == 3
        assert all(1 <= len(frames) <= 3 for frames in held)
        again = videos(compiled, model.config, ([3] * 6,))
    assert torch.equal(first[0], again[0])  # a new video begins with empty stores


@pytest.mark.slow
def test_episodic_memory_of_a_batch_is_that_of_its_videos() -> None:
    """Two videos in one batch: each fills its own stores, as it does alone."""
    policy = Policy.loads("""
        headforce: 0
        classes: {memory: 'sink(1) | episodic(2, write=novel(0.9)) | window(1)', last: window(1)}
        default: last
        heads: {0: {memory: [1]}, 1: {memory: [0, 3]}}
        """)
    model = wan(num_layers=2)
    config = model.config

    def run(rows: slice) -> tuple[torch.Tensor, list[dict[object, object]]]:
        noise = torch.randn(2, config.channels, 18, config.latent_height, config.latent_width, generator=_seeded(3))
        noise[0] = noise[0, :, :1]  # a video that stands still has little that is novel
        context = torch.randn(2, config.text_len, config.text_dim, generator=_seeded(4))
        caches = {
            "kv_cache": allocate_kv_cache(config, len(noise[rows])),
            "crossattn_cache": allocate_crossattn_cache(config, len(noise[rows])),
        }
        with headforce.prepare(model, policy=policy, verify="plan") as session, torch.no_grad():
            compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
            out = [
                compiled(
                    noise[rows, :, start : start + 3],
                    torch.full((len(noise[rows]), 3), 500.0),
                    context[rows],
                    **caches,
                    current_start=start * config.tokens_per_frame,
                )
                for start in range(0, 18, 3)
            ]
            stream = session.cache_sets[0].stream
            stores: list[dict[object, object]] = [{} for _ in range(stream.batch)]
            for lane in stream.lanes:
                if lane.memory is not None:
                    layer, row, head = lane.first
                    stores[row][layer, head] = lane.memory.stores
        return torch.cat(out, 2), stores

    both, stores = run(slice(0, 2))
    assert len(stores[0]) == len(stores[1]) == 3
    assert stores[0] != stores[1]  # the videos differ, and so do their memories
    for row in range(2):
        alone, (its_stores,) = run(slice(row, row + 1))
        assert its_stores == stores[row]
        assert relative(both[row : row + 1], alone) < TOLERANCE


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_remap_without_known_rates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from headforce.kvpass import site_reader

    monkeypatch.setattr(site_reader, "temporal_rates", lambda *_: torch.zeros(0, dtype=torch.float64))
    model = wan(num_layers=2)
    policy = Policy.loads(POLICIES["collapsed and clamped"])
    with headforce.prepare(model, policy=policy), pytest.raises(headforce.HeadforceError, match="HF-ROPE"):
        videos(torch.compile(model, backend="headforce", options={"inner": "eager"}), model.config, ([3] * 3,))
