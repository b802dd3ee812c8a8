"""The cache protocol and the generation loop."""

import dataclasses

import pytest
import torch

from examples.causal_wan import (
    SELF_FORCING_TIMESTEPS,
    TINY,
    CacheError,
    CausalWan,
    Rollout,
    SelfAttention,
    allocate_crossattn_cache,
    allocate_kv_cache,
    init_random,
    renoise,
    reset_caches,
    rope_angles,
    rope_table,
    rotate,
    x0_from_flow,
)

T = TINY.tokens_per_frame


def with_window(window, sink=0, **changes):
    return dataclasses.replace(TINY, local_attn_size=window, sink_size=sink, **changes)


def text(batch=1, seed=5):
    return torch.randn(batch, TINY.text_len, TINY.text_dim, generator=torch.Generator().manual_seed(seed))


# The cache ------------------------------------------------------------------------------------------------------------


def attention_over(attention, rope, frames, start):
    """Attention of the frames from ``start`` on over all of ``frames``, a dict from index to input [B, T, dim]."""
    keys, values = [], []
    for frame, x in sorted(frames.items()):
        k, v = attention.key_value(x)
        keys.append(rotate(k, *rope_angles(rope, frame, (1, *TINY.grid))))
        values.append(v)
    chunk = [x for frame, x in sorted(frames.items()) if frame >= start]
    q = rotate(attention.query(torch.cat(chunk, dim=1)), *rope_angles(rope, start, (len(chunk), *TINY.grid)))
    logits = torch.einsum("blhd,bshd->bhls", q, torch.cat(keys, dim=1)) / q.shape[-1] ** 0.5
    return attention.o(torch.einsum("bhls,bshd->blhd", logits.softmax(-1), torch.cat(values, dim=1)).flatten(2))


@pytest.mark.parametrize(
    ("window", "sink", "chunks"),
    [
        (6, 0, [3] * 5),
        (6, 1, [3] * 5),
        (7, 2, [3] * 6),
        (5, 1, [1] * 12),
        (7, 2, [1, 3, 3, 2, 4, 1, 5, 3]),
        (-1, 0, [1, 3, 3, 2]),
    ],
)
@torch.no_grad()
def test_cached_attention_equals_attention_over_the_frames_in_the_window(window, sink, chunks):
    config = with_window(window, sink, full_attn_size=sum(chunks))
    attention = init_random(SelfAttention(config), seed=0, peaked=True)
    rope, (cache, *_) = rope_table(config.head_dim, config.rope_positions), allocate_kv_cache(config, batch=2)
    generator = torch.Generator().manual_seed(1)
    for _video in range(2):
        reset_caches([cache], [])
        history, start = {}, 0
        for n in chunks:
            end = start + n
            for _pass in range(3):
                # Every pass brings other content; only that of the last one may reach later chunks.
                chunk = {f: torch.randn(2, T, config.dim, generator=generator) for f in range(start, end)}
                result = attention(torch.cat(list(chunk.values()), 1), rope, (n, *config.grid), cache, start * T)
                oldest = 0 if window == -1 else end - (window - sink)
                held = {f: x for f, x in history.items() if f < sink or f >= oldest}
                expected = attention_over(attention, rope, held | chunk, start)
                torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-4)
                assert cache["global_end_index"] == end * T
                assert cache["local_end_index"] == T * (len(held) + n)
            history |= chunk
            start = end


def test_chunks_that_do_not_fit_the_cache_are_refused():
    def write(config, *chunks):
        attention, (cache, *_) = SelfAttention(config), allocate_kv_cache(config)
        rope = rope_table(config.head_dim, 64)
        with torch.no_grad():
            for start, n in chunks:
                attention(torch.zeros(1, n * T, config.dim), rope, (n, *config.grid), cache, start * T)

    write(with_window(-1, full_attn_size=6), (0, 3), (3, 3), (3, 3))
    with pytest.raises(CacheError, match="window"):
        write(with_window(-1, full_attn_size=6), (0, 3), (3, 3), (6, 3))
    with pytest.raises(CacheError, match="sink"):
        write(with_window(6, 2), (0, 3), (3, 3), (6, 5))
    with pytest.raises(CacheError, match="so far"):
        write(with_window(6), (0, 3), (4, 3))
    with pytest.raises(CacheError, match="left the cache"):
        write(with_window(6), (0, 3), (3, 3), (6, 3), (0, 3))


def test_noisy_passes_leave_no_trace():
    """Chunks that had noisy passes before the clean one and chunks that had none give the same future, bit for bit."""
    config = with_window(6, 1)
    model, context = init_random(CausalWan(config), seed=0, peaked=True), text()
    generator = torch.Generator().manual_seed(2)
    clean = [torch.randn(1, config.channels, n, 8, 12, generator=generator) for n in (1, 3, 3, 2, 3)]

    def future(noisy_passes):
        kv, cross = allocate_kv_cache(config), allocate_crossattn_cache(config)
        flows, start = [], 0
        for x in clean:
            for t in (*noisy_passes, 0.0):
                seen = x if t == 0 else torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t)))
                with torch.no_grad():
                    flow = model(seen, torch.full((1, x.shape[2]), t), context, kv, cross, start * T)
            flows.append(flow)
            start += x.shape[2]
        return flows, kv

    with_noise, kv_with_noise = future(SELF_FORCING_TIMESTEPS)
    without, kv_without = future(())
    for a, b in zip(with_noise, without, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(kv_with_noise, kv_without, strict=True):
        assert torch.equal(a["k"], b["k"])
        assert torch.equal(a["v"], b["v"])


# The schedule ---------------------------------------------------------------------------------------------------------


def test_timesteps_are_the_published_ones():
    assert pytest.approx((1000, 937.5, 2500 / 3, 625)) == SELF_FORCING_TIMESTEPS


@pytest.mark.parametrize("t", [1000.0, 625.0, 0.0])
def test_the_flow_leads_back_to_the_clean_latents(t):
    x0, noise = torch.randn(2, 4, 3, 8, 12), torch.randn(2, 4, 3, 8, 12)
    torch.testing.assert_close(x0_from_flow(noise - x0, renoise(x0, noise, t), t), x0, atol=1e-6, rtol=0)
    assert renoise(x0.bfloat16(), noise.bfloat16(), t).dtype == torch.bfloat16


# The loop -------------------------------------------------------------------------------------------------------------


def test_the_loop_makes_noisy_passes_and_a_clean_one_for_each_chunk():
    calls, noise, x0 = [], torch.Generator().manual_seed(4), None

    def model(x, t, context, kv_cache, crossattn_cache, current_start):
        calls.append((x.clone(), t, current_start))
        return x  # a flow for which x0 is exactly (1 - sigma) x

    rollout = Rollout(model, TINY)
    assert rollout.kv_cache is None, "caches are allocated with the first chunk"
    passes = list(rollout.passes(text(batch=2), chunks=[1, 3, 2], seed=4))
    assert len(passes) == len(calls) == 15
    assert [p.clean for p in passes] == [False, False, False, False, True] * 3
    for done, (x, t, current_start) in zip(passes, calls, strict=True):
        start, frames = [(0, 1), (1, 3), (4, 2)][done.chunk]
        timestep = (*SELF_FORCING_TIMESTEPS, 0.0)[done.step]
        assert (done.start, done.frames, done.timestep, done.steps) == (start, frames, timestep, 5)
        assert current_start == start * T
        assert x.shape == done.x0.shape == (2, TINY.channels, frames, 8, 12)
        torch.testing.assert_close(t, torch.full((2, frames), timestep))
        if done.clean:
            assert torch.equal(x, done.x0)
            assert torch.equal(x, x0)
            continue
        fresh = torch.randn(x.shape, generator=noise)
        torch.testing.assert_close(x, fresh if done.step == 0 else renoise(x0, fresh, timestep))
        torch.testing.assert_close(done.x0, (1 - timestep / 1000) * x)
        x0 = done.x0


def test_a_second_video_starts_afresh_in_the_same_memory():
    model, seen = init_random(CausalWan(with_window(6, 1)), seed=0, peaked=True), []
    rollout = Rollout(model)
    first = rollout.generate(text(), [3, 3, 3], seed=7, on_pass=seen.append)
    assert len(seen) == 15
    memory = [cache["k"].data_ptr() for cache in rollout.kv_cache]
    other = rollout.generate(text(seed=6), [1, 3, 3], seed=8)
    next(rollout.passes(text(), [3, 3], seed=9))  # a video that is given up
    assert torch.equal(rollout.generate(text(), [3, 3, 3], seed=7), first)
    assert [cache["k"].data_ptr() for cache in rollout.kv_cache] == memory
    assert torch.equal(other, Rollout(model).generate(text(seed=6), [1, 3, 3], seed=8))
    assert not torch.allclose(other[:, :, :3], first[:, :, :3], atol=0.1)
    assert rollout.generate(text(batch=2), [3]).shape[0] == 2
    rollout.reset()
    assert {cache["global_end_index"] for cache in rollout.kv_cache} == {0}


def test_a_bfloat16_video_with_evictions_is_finite():
    model = init_random(CausalWan(with_window(4, 1)), seed=0, peaked=True).bfloat16()
    video = Rollout(model).generate(text(batch=2).bfloat16(), [1, 3, 2, 3, 3])
    assert video.shape == (2, TINY.channels, 12, 8, 12)
    assert video.dtype == torch.bfloat16
    assert video.isfinite().all()
    assert 0.3 < video.float().std() < 3


@pytest.mark.parametrize(
    ("config", "chunks", "match"),
    [
        (TINY, [], "at least one"),
        (TINY, [3, 0], "at least one"),
        (TINY, [7], "exceed the cache"),
        (with_window(6, 4), [3], "exceed the cache"),
        (with_window(-1), [3] * 8, "without a window"),
        (with_window(6, rope_positions=16), [3] * 6, "RoPE table"),
    ],
)
def test_chunks_that_cannot_work_are_refused_before_the_first_pass(config, chunks, match):
    with pytest.raises(ValueError, match=match):
        Rollout(lambda *_: None, config).passes(text(), chunks)
