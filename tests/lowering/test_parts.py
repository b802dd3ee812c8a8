"""Stores that keep parts of frames: what attention reads of them, against keys that were never paged nor copied."""

import dataclasses
import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from headforce.errors import HeadforceError
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering.state.rows import Rows
from headforce.lowering.state.score import load_scores
from headforce.lowering.state.select import asks_queries, check_selections
from headforce.lowering.stream import Event
from headforce.lowering.verify import check_plan, check_tables
from headforce.policy import FrameSet, Policy, Warmup, oracle, parse_rule
from headforce.testing import check_score
from headforce.testing.parts_rig import TOKENS, PartsRig
from headforce.testing.rig import DOUBLE, Rig

from ..kvpass.presets import PRESETS

MARGIN = 1e-5


def rollout(rule, chunks=5, **kwargs):
    """A checked stream of chunks of 3 frames."""
    rig = PartsRig(rule, **kwargs)
    for start in range(0, 3 * chunks, 3):
        rig.check(start, 3)
    return rig


SELECT = "sink(1) | select(1, segments=4, source=evicted(recent), scope=model) | window(1) as recent"
MERGE = "sink(1)@collapse(9) | merge(4, height=2, width=2, last=3) & older(3) | window(1)"


@settings(max_examples=8)
@given(
    st.sampled_from(
        [
            SELECT,
            MERGE,
            "select(2, segments=token, source=evicted(recent), scope=layer)@collapse(5) | window(2) as recent",
            "(sink(1) | select(1, segments=3, source=evicted(recent)) | window(2) as recent)@contiguous",
            "merge(2, height=1, width=3, last=2)@clamp(4) | merge(3, last=1) as whole | window(2)",
            "(merge(2, height=4, width=1, last=2) | window(1))@contiguous",
            "select(1, segments=2, source=evicted(kept)) | episodic(2, write=novel(1)) as kept",
        ]
    ),
    st.lists(st.integers(1, 4), min_size=3, max_size=7),
    st.sampled_from([INTERLEAVED, SPLIT_HALF]),
    st.sampled_from([None, Warmup(2, parse_rule("sink(1) | window(2)"))]),
    st.integers(0, 3),
)
def test_attention_reads_what_the_definitions_say(rule, sizes, style, warmup, seed):
    rig = PartsRig(rule, style=style, warmup=warmup, seed=seed, batch=1 + seed % 2, others={1: {"b": (1,)}})
    start = 0
    for frames in sizes:
        rig.check(start, frames)
        rig.check(start, frames)  # a second pass over the same chunk: what it wrote is what counts
        start += frames


def test_parts_are_read_at_all():
    """The rules above would agree with everything if nothing were ever selected or merged."""
    for rule, count in ((SELECT, 4), (MERGE, 2)):
        readings = rollout(rule, 6).stream.plan.of(0, 0).readings
        assert sum(len(item.parts) for item in readings[-1].parts) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision(dtype):
    for rule in (SELECT, MERGE):
        rig = PartsRig(rule, dtype=dtype, layers=1)
        for start in range(0, 12, 3):
            for layer, (query, out) in enumerate(rig.run(start, 3)):
                exact = rig.expected(layer, query)
                plain = (rig.expected(layer, query, dtype).to(DOUBLE) - exact).abs().max()
                # A merged key is rounded once more, when it is stored.
                assert (out.to(DOUBLE) - exact).abs().max() <= 3 * plain + 4 * torch.finfo(dtype).eps


def test_a_part_keeps_its_values_when_its_frames_are_gone():
    rig = PartsRig("merge(2, last=2) | window(1)", heads=1, layers=1)
    for start in range(0, 12, 2):
        rig.check(start, 2)
    assert str(rig.stream.lane(0, 0).slots.held) == "9-11"
    (item,) = rig.stream.plan.of(0, 0).readings[0].parts
    assert [part.frames for part in item.parts] == [(6, 7)]  # block (8, 9) holds frame 9, which the window reads whole


# --- the choice -----------------------------------------------------------------------------------------------------


def plain_scores(rig, heads, frames, segments, layer=0):
    """Per segment of `frames`: the mean cosine of a token's key and that of the next frame, over the heads at once."""
    scores = {}
    for frame in frames:
        now, then = (torch.cat([rig._frame(layer, 0, h, f)[0] for h in heads], dim=-1) for f in (frame, frame + 1))
        cosine = (now * then).sum(-1) / now.norm(dim=-1) / then.norm(dim=-1)
        for i, piece in enumerate(cosine.chunk(segments)):
            scores[frame * segments + i] = piece.mean().item()
    return scores


@pytest.mark.parametrize("scope", ["head", "layer", "model"])
@pytest.mark.parametrize("seed", range(3))
def test_the_least_similar_segments_are_kept(scope, seed):
    """Forcing-KV's own: of the frames that leave, the segments that resemble the next frame least."""
    rule = SELECT.replace("scope=model", f"scope={scope}")
    rig = PartsRig(rule, seed=seed, dtype=torch.float32, layers=3, others={0: {"b": (0, 1, 2)}, 1: {"b": (1,)}})
    for start in range(0, 15, 3):
        rig.check(start, 3)
        if start < 6:
            continue
        leaving = range(start - 4, start - 1)
        for layer, head in ((1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
            judges = {
                "head": (layer, [head]),
                "layer": (layer, [0, 2] if layer == 1 else [0, 1, 2]),
                "model": (1, [0, 2]),
            }
            scores = plain_scores(rig, judges[scope][1], leaving, 4, judges[scope][0])
            chosen = rig.selected(layer=layer, head=head)
            assert len(chosen) == 4
            # The worst that was kept is better than the best that was not, but for rounding.
            rest = [scores[s] for s in scores if s not in chosen]
            assert max(scores[s] for s in chosen) <= min(rest) + MARGIN


def test_heads_that_decide_together_hold_the_same():
    rig = PartsRig(SELECT, layers=3)
    for start in range(0, 12, 3):
        rig.check(start, 3)
    assert len(rig.stream.lanes) == 1
    assert rig.stream.lanes[0].present["select"] == FrameSet.of(rig.selected())


def test_each_video_of_a_batch_selects_for_itself():
    rig = PartsRig(SELECT, batch=2)
    for start in range(0, 12, 3):
        rig.check(start, 3)
    assert rig.selected(row=0) != rig.selected(row=1)


def test_a_pool_of_all_keeps_what_is_best_of_old_and_new():
    rule = "select(1, segments=4, source=evicted(recent), pool=all, score=mean_key_cosine) | window(1) as recent"
    rig = PartsRig(rule, heads=1, layers=1)
    offered = set()
    for start in range(0, 18, 3):
        rig.check(start, 3)
        if start:
            newest, kept = start - 1, rig.selected()
            offered |= {f * 4 + i for f in range(max(0, start - 4), start - 1) for i in range(4)}

            def like(segment, newest=newest):
                frame, i = divmod(segment, 4)
                rows = range(i * TOKENS // 4, (i + 1) * TOKENS // 4)
                a, b = (sum(rig.raw((0, 0, 0), f, t) for t in rows) for f in (frame, newest))
                return (a @ b / a.norm() / b.norm()).item()

            assert len(kept) == min(4, len(offered))
            assert min(map(like, kept)) >= max([like(s) for s in offered - set(kept)], default=-2) - MARGIN
            offered = set(kept)
    assert any(segment // 4 < 12 for segment in rig.selected())


@pytest.mark.parametrize("fails_at", range(5))
def test_parts_that_did_not_fit_are_made_when_the_pass_is_tried_again(fails_at, monkeypatch):
    """Parts that change their place in a store are not lost by that, nor by heads that had them before."""
    rule = "select(1, segments=4, source=evicted(recent), pool=all, score=mean_key_cosine) | window(1) as recent"
    rig = rollout(rule, 3, layers=1)
    monkeypatch.setattr("headforce.lowering.state.making.AT_ONCE", 1)  # one head at a time
    take, count = Rows.take, itertools.count()

    def failing(rows, *where):
        if next(count) == fails_at:
            raise torch.OutOfMemoryError
        return take(rows, *where)

    monkeypatch.setattr(Rows, "take", failing)
    with pytest.raises(torch.OutOfMemoryError):
        rig.begin(9, 3)
    for start in (9, 12, 15):
        rig.check(start, 3)


def test_nothing_is_selected_during_the_warmup():
    rig = PartsRig(SELECT, warmup=Warmup(2, parse_rule("sink(1) | window(1)")))
    seen = []
    for start in range(0, 15, 3):
        rig.check(start, 3)
        seen.append(bool(rig.selected()))
    # Chunks 0 and 1 are the warm-up; the commit of chunk 2 is the first that selects.
    assert seen == [False, False, False, True, True]


def test_blocks_that_were_completed_during_the_warmup_are_there():
    rig = PartsRig("merge(2, last=2) | window(1)", warmup=Warmup(2, parse_rule("window(1)")))
    for start in range(0, 9, 3):
        rig.check(start, 3)
    (item,) = rig.stream.plan.of(0, 0).readings[0].parts
    assert [part.frames for part in item.parts] == [(2, 3)]


@pytest.mark.parametrize("name", [n for n, policy in PRESETS.items() if not asks_queries(policy)])
def test_v12_noisy_passes_leave_nothing(name):
    """Three noisy passes and a clean one leave the same as the clean one alone, under every preset.

    Deep Forcing's queries are kept by a compiled model alone: tests/kvpass/test_presets.py has it.
    """
    many, one = (PartsRig(PRESETS[name], layers=2, heads=4) for _ in range(2))
    for start in range(0, 24, 3):
        for _ in range(3):
            many.run(start, 3)
        state = many.generator.get_state()
        many.check(start, 3)
        one.generator.set_state(state)
        one.check(start, 3)
    assert [lane.held for lane in many.stream.lanes] == [lane.held for lane in one.stream.lanes]
    torch.testing.assert_close(many.pool.k, one.pool.k, rtol=0, atol=0, equal_nan=True)


# --- going back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "store", "left"),
    [
        ("select(1, segments=4, source=evicted(recent)) | window(6) as recent & sink(1)", "select", None),
        ("merge(4, height=2, width=2, last=3) | span(4)", "merge", "8-15"),
    ],
)
def test_a_rewrite_reads_the_parts_in_front_of_it_and_leaves_them(rule, store, left):
    rig = PartsRig(rule, layers=1, heads=1)
    for start in range(0, 21, 3):
        rig.check(start, 3)
    assert rig.begin(17, 4) is Event.REWRITE
    rewritten, present = (of[store] for of in (rig.stream.lanes[0].held, rig.stream.lanes[0].present))
    assert rewritten
    assert str(rewritten) == left if left else rewritten == present
    query, key, value = (rig._random(width) for width in (rig.head_dim, rig.head_dim, rig.value_dim))
    rig.write(0, key, value)
    torch.testing.assert_close(rig.attention(0, query), rig.expected(0, query), rtol=0, atol=1e-9)
    rig.check(21, 3)
    assert rig.stream.history == 21


def test_going_back_to_what_is_gone_is_refused_and_loses_nothing():
    rig = PartsRig("select(1, segments=4, source=evicted(recent)) | window(2) as recent", layers=1, heads=1)
    for start in range(0, 12, 2):
        rig.check(start, 2)
    before = rig.stream.lanes[0].held
    with pytest.raises(HeadforceError, match="HF-FORGOTTEN"):
        rig.begin(4, 2)
    assert rig.stream.lanes[0].held == before
    rig.check(12, 2)


def test_a_reset_forgets_parts():
    for rule in (SELECT, MERGE):
        rig = PartsRig(rule)
        for start in (0, 3, 6, 9, 0, 3, 6, 9):
            rig.check(start, 3)
            if not start:
                assert not any(rig.stream.lanes[0].held.values())


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("select(1, segments=5, source=evicted(recent)) | window(1) as recent", "HF-SEGMENTS"),
        ("merge(2, height=5)", "HF-SEGMENTS"),
        ("merge(2, height=3)", "HF-SEGMENTS"),  # divides 24 tokens, but not 4 rows of them
        ("select(1, segments=4, source=evicted(recent), score=similarity) | window(1) as recent", "HF-SCORE"),
        ("select(1, segments=4, source=evicted(recent), pool=all) | window(1) as recent", "HF-SCORE"),
    ],
)
def test_what_cannot_be_done_is_refused(rule, code):
    with pytest.raises(HeadforceError, match=code):
        rollout(rule)


@pytest.mark.parametrize("rule", [MERGE, SELECT.replace("scope=model", "score=mean_key_cosine")])
def test_raw_keys_need_a_rotation_that_is_known(rule):
    with pytest.raises(HeadforceError, match="HF-ROPE"):
        rollout(rule, known=False)


def test_tokens_are_unknown_before_a_model_is_seen():
    rule = parse_rule("select(1, segments=token, source=evicted(recent)) | window(1) as recent")
    with pytest.raises(HeadforceError, match="HF-SEGMENTS"):
        rule.terms[0].op.parts(FrameSet.of([3]))


# --- what is registered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", load_scores())
def test_a_score_keeps_the_laws(name):
    check_score(name)


# --- mute -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reference", "sdpa"])
def test_a_muted_head_is_silent(target):
    policy = Policy({"quiet": parse_rule("mute()"), "b": parse_rule("window(2)")}, "b", heads={0: {"quiet": (1,)}})
    rig = Rig(policy.bind(layers=2, heads=3), target)
    for start in (0, 3, 6):
        for layer, (query, out) in enumerate(rig.run(start, 3)):
            torch.testing.assert_close(out, rig.expected(layer, query), rtol=0, atol=1e-9)
            assert bool(out[:, :, 1].any()) == (layer == 1)
        check_plan(rig.stream)
        check_tables(rig.pool)
    assert oracle.read(parse_rule("mute()"), None, rig.stream.chunk, 6) == {}
    assert rig.stream.lane(0, 1).slots.pages == 3  # a model's keys are written all the same


# --- the checker is checked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [SELECT, MERGE])
def test_a_plan_that_reads_other_parts_is_found(rule):
    rig = rollout(rule, 6)
    plan = rig.stream.plan.heads[0]
    (reading, *rest) = plan.readings
    (item,) = reading.parts
    fewer = dataclasses.replace(item, parts=item.parts[1:], positions=item.positions[1:])
    moved = dataclasses.replace(item, positions=tuple(p + 1 for p in item.positions))
    for wrong in (fewer, moved):
        readings = (dataclasses.replace(reading, parts=(wrong,)), *rest)
        wrong_plan = dataclasses.replace(plan, readings=readings)
        rig.stream.plan = dataclasses.replace(rig.stream.plan, heads=(wrong_plan, *rig.stream.plan.heads[1:]))
        with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
            check_plan(rig.stream)
        with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
            check_tables(rig.pool)


def test_tables_that_name_another_part_are_found():
    rig = rollout(SELECT, 6)
    runs = rig.pool.runs[0]
    runs[0, 0] += TOKENS // 4
    with pytest.raises(HeadforceError, match="HF-VERIFY-PLAN"):
        check_tables(rig.pool)


@pytest.mark.parametrize(
    "rule",
    [
        "select(1, segments=4, source=evicted(recent), pool=all) | window(1) as recent",
        "select(1, segments=4, source=evicted(far)) | stride(3, phase=0, last=2) as far",
    ],
)
def test_selections_that_can_never_be_scored_are_refused_before_a_video(rule):
    with pytest.raises(HeadforceError, match="HF-SCORE"):
        check_selections(Policy({"a": parse_rule(rule)}, "a").bind(layers=1, heads=1, tokens=TOKENS))
    check_selections(Policy({"a": parse_rule(SELECT)}, "a").bind(layers=1, heads=1, tokens=TOKENS))


def test_heads_that_decide_together_need_a_source_in_common():
    with pytest.raises(HeadforceError, match=r"HF-RULE-FORM.*scope=head"):
        parse_rule("select(1, source=evicted(kept), scope=model) | episodic(2) as kept")
