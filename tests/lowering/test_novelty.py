"""Stores at run time: decisions from keys in pages, against brute force over keys that were never turned or paged."""

import functools
import itertools
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import sympy
import torch
from hypothesis import assume, given, settings

from headforce.errors import HeadforceError
from headforce.kernels.rotation import INTERLEAVED, SPLIT_HALF
from headforce.lowering.state.decider import decider
from headforce.lowering.state.episodic import _cosines, _least_novel
from headforce.lowering.state.turning import Turning
from headforce.lowering.stream import Event
from headforce.lowering.verify import check_plan, check_tables
from headforce.policy import FrameSet, HeadMemory, Policy, StoreOp, parse_rule, policy_op
from headforce.testing.rig import DOUBLE, Rig, turned
from headforce.testing.strategies import novel_by, rules

LAYERS, HEADS, TOKENS, WIDTH = 2, 2, 3, 8
TIME, SPACE = 2, 2
"""Temporal pairs and spatial pairs of a key, in this order."""
MARGIN = 1e-5
"""Similarities closer than this to what decides are left out: float32 may decide either way."""


class Scenes:
    """A rig whose frames look like their scene: frames of one scene have almost the same raw keys."""

    def __init__(self, rule, scene_of, *, noise=0.1, style=INTERLEAVED, dtype=torch.float32, rope=True, seed=0):
        self.rule = parse_rule(rule) if isinstance(rule, str) else rule
        policy = Policy({"a": self.rule}, default="a", horizon=200).bind(layers=LAYERS, heads=HEADS)
        self.rig = Rig(policy, dtype=dtype, tokens=TOKENS, head_dim=WIDTH, style=style, pairs=TIME)
        if not rope:
            self.rig.theta = torch.zeros(0, dtype=DOUBLE)
        self.scene_of, self.noise, self.seed = scene_of, noise, seed
        self.angles = torch.rand(TOKENS, SPACE, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * 6
        self.version = 0

    def raw(self, layer, frame):
        """[1, T, H, D]: the keys before any rotation. They depend on the layer, the frame and its scene alone."""
        picture = torch.Generator().manual_seed(1000 * self.seed + 100 * layer + self.scene_of(frame))
        grain = torch.Generator().manual_seed(7919 * frame + layer + 31 * self.version)
        shape = (1, TOKENS, HEADS, WIDTH)
        return torch.randn(shape, dtype=DOUBLE, generator=picture) + self.noise * torch.randn(
            shape, dtype=DOUBLE, generator=grain
        )

    def stored(self, layer, frame):
        """What the model writes: turned by the place of every token and by the time of the frame."""
        key = self.raw(layer, frame)
        for token in range(TOKENS):
            key[:, token] = turned(key[:, token], self.angles[token], TIME, self.rig.style)
        return turned(key, frame * self.rig.theta, 0, self.rig.style)

    def begin(self, start, frames):
        rig = self.rig
        event = rig.begin(start, frames, decider(rig.pool, Turning(rig.theta, 0, rig.style)))
        check_plan(rig.stream)
        check_tables(rig.pool)
        for layer in range(LAYERS):
            key = torch.cat([self.stored(layer, f) for f in rig.stream.chunk.queries], dim=1).to(rig.dtype)
            rig.write(layer, key, key[..., : rig.value_dim])
        return event

    def memory(self, layer=0, head=0):
        return self.rig.stream.lane(layer, head).memory

    def held(self, store="episodic", layer=0, head=0):
        return [str(unit) for unit in self.memory(layer, head).stores.get(store, ())]


def brute_force(scenes, layer, head):
    """Decides from raw keys in float64, by the words of the definition. Close calls are not judged."""

    @functools.cache
    def frame_similarity(f, g):
        a, b = (scenes.raw(layer, x)[0, :, head].flatten() for x in (f, g))
        return (a @ b / a.norm() / b.norm()).item()

    def unit_similarity(a, b):
        pairs = [frame_similarity(f, g) for f in a for g in b]
        return sum(pairs) / len(pairs)

    def novel(store, held, candidate):
        if not held:
            return True, FrameSet()
        term = next(term for term in scenes.rule.stateful if term.store == store)
        nearest = max(unit_similarity(unit, candidate) for unit in held)
        assume(abs(nearest - term.op.write.threshold) > MARGIN)
        alike = [max(unit_similarity(u, v) for v in [*held, candidate] if v is not u) for u in held]
        assume(all(a == b or abs(a - b) > MARGIN for a, b in itertools.combinations(set(alike), 2)))
        return nearest < term.op.write.threshold, held[alike.index(max(alike))]

    return novel_by(novel)


# --- planted novelty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [INTERLEAVED, SPLIT_HALF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_frame_of_every_scene_is_kept(style, dtype):
    scenes = Scenes("episodic(9, write=novel(0.7)) | window(1)", lambda f: f // 5 % 3, style=style, dtype=dtype)
    for start in range(0, 30, 3):
        scenes.begin(start, 3)
    for layer, head in itertools.product(range(LAYERS), range(HEADS)):
        assert scenes.held(layer=layer, head=head) == ["0", "5", "10"]


def test_without_undoing_time_a_scene_would_look_new():
    scenes = Scenes("episodic(9, write=novel(0.7))", lambda f: 0)
    rig = scenes.rig
    for start in range(0, 12, 3):
        scenes.begin(start, 3)
    rig.stream.begin(12, 3, decider(rig.pool, Turning(torch.zeros(0, dtype=DOUBLE), 0, rig.style)))
    assert scenes.held()[0] == "0"
    assert len(scenes.held()) > 1


def test_without_rope_keys_are_taken_as_they_are():
    scenes = Scenes("episodic(9, write=novel(0.7))", lambda f: f // 4, rope=False)
    for start in range(0, 15, 3):
        scenes.begin(start, 3)
    assert scenes.held() == ["0", "4", "8"]


def test_whole_chunks_are_compared_by_the_mean_over_their_frames():
    scenes = Scenes("episodic(9, unit=chunk, write=novel(0.7))", lambda f: [0, 0, 0, 0, 0, 1, 2, 2, 2, 0, 1, 1, 9][f])
    for start in range(0, 12, 3):
        scenes.begin(start, 3)
    scenes.begin(12, 1)
    # Two of three frames of 3-5 look like 0-2, a mean of about 2/3; 9-11 is like 3-5 in 5 of 9 pairs.
    assert scenes.held() == ["0-2", "3-5", "6-8", "9-11"]


def test_a_full_store_gives_up_its_oldest():
    scenes = Scenes("episodic(2, write=novel(0.7))", lambda f: f)
    for start in range(0, 9, 3):
        scenes.begin(start, 3)
    assert scenes.held() == ["4", "5"]


def test_least_novel_gives_up_what_it_has_twice():
    # Frames 0 and 2 are of one scene: 2 is written by chance of a high threshold, and then one of them is superfluous.
    scenes = Scenes("episodic(3, write=novel(1), evict=least_novel)", lambda f: [0, 1, 0, 2, 3][min(f, 4)])
    for start in range(5):
        scenes.begin(start, 1)
    assert scenes.held() == ["1", "2", "3"]


def test_of_several_least_novel_units_the_oldest_goes():
    held, candidate = tuple(FrameSet.of([f]) for f in (4, 2, 3, 7)), FrameSet.of([9])
    alike = dict.fromkeys(itertools.combinations_with_replacement((2, 3, 4, 7, 9), 2), 0.1)
    assert _least_novel(alike, held, candidate) == held[0]
    assert _least_novel({**alike, (2, 7): 0.8}, held, candidate) == held[1]
    assert _least_novel({**alike, (2, 7): 0.8, (3, 9): 0.9}, held, candidate) == held[2]


def test_what_a_window_lets_go_of_feeds_a_chain_of_stores():
    rule = (
        "window(2) as recent | episodic(2, source=evicted(recent), write=novel(0.7)) as near"
        " | episodic(3, source=evicted(near), write=novel(0.7)) as far"
    )
    scenes = Scenes(rule, lambda f: f // 2)
    for start in range(0, 14, 2):
        scenes.begin(start, 2)
    assert scenes.held("near") == ["6", "8"]
    assert scenes.held("far") == ["0", "2", "4"]


def test_a_unit_that_is_not_read_is_still_compared():
    scenes = Scenes("episodic(4, write=novel(0.7)) as all & sink(1)", lambda f: f // 2)
    for start in range(6):
        scenes.begin(start, 1)
    assert scenes.held("all") == ["0", "2", "4"]
    assert scenes.rig.stream.plan.of(0, 0).kept == 1


def test_similarities_of_half_precision_keys_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    keys = (torch.ones(1, 50, 8) + 0.1 * torch.randn(4, 50, 8, generator=generator)).to(torch.bfloat16)
    times, theta = torch.tensor([3, 4, 7, 40]), torch.tensor([0.7, 0.3], dtype=DOUBLE)
    raw = [turned(k.to(DOUBLE), -t * theta, 1, SPLIT_HALF).flatten() for k, t in zip(keys, times, strict=True)]
    unit = torch.stack([key / key.norm() for key in raw])
    found = _cosines(keys, times, Turning(theta, 1, SPLIT_HALF))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to(DOUBLE), unit @ unit.mT, rtol=0, atol=1e-6)


# --- against brute force ----------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    rules(stores=True, most=3, parts=False).filter(lambda rule: rule.stateful),
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
    st.lists(st.integers(1, 4), min_size=2, max_size=8),
    st.floats(0.3, 2),
    st.sampled_from([INTERLEAVED, SPLIT_HALF]),
    st.integers(0, 5),
)
def test_decisions_are_those_of_brute_force(rule, scene, sizes, noise, style, seed):
    scenes = Scenes(rule, lambda f: scene[f], noise=noise, style=style, seed=seed)
    judges = {
        (layer, head): (HeadMemory(scenes.rule), brute_force(scenes, layer, head))
        for layer in range(LAYERS)
        for head in range(HEADS)
    }
    start, before = 0, None
    for frames in sizes:
        scenes.begin(start, frames)
        chunk = scenes.rig.stream.chunk
        for cell, (memory, decide) in judges.items():
            if before is not None:
                memory.commit(before, chunk, decide)
            assert scenes.memory(*cell).stores == memory.stores
            assert scenes.memory(*cell).record == memory.record
        start, before = start + frames, chunk
    for layer in range(LAYERS):
        query = torch.randn(1, sizes[-1] * TOKENS, HEADS, WIDTH)
        out = scenes.rig.attention(layer, query).to(DOUBLE)
        torch.testing.assert_close(out, scenes.rig.expected(layer, query), rtol=1e-4, atol=1e-4)


def test_only_committed_frames_are_offered_when_a_pass_is_cut_short():
    scenes = Scenes("episodic(9, write=novel(0.7))", lambda f: f)
    for start in range(9):
        scenes.begin(start, 4)
    assert scenes.held() == [str(f) for f in range(8)]


def test_a_rewrite_changes_what_later_candidates_are_compared_with():
    scenes = Scenes("episodic(9, write=novel(0.7)) | window(4)", lambda f: min(f, 3))
    for start in range(4):
        scenes.begin(start, 1)
    assert scenes.held() == ["0", "1", "2"]
    scenes.scene_of = lambda f: {1: 9, 4: 1, 5: 9}.get(f, min(f, 3))
    assert scenes.begin(1, 1) is Event.REWRITE
    assert scenes.held() == ["0"]
    for start in (4, 5, 6):
        scenes.begin(start, 1)
    # Frame 4 looks like frame 1 did before it was rewritten, frame 5 as it does now.
    assert scenes.held() == ["0", "1", "2", "3", "4"]


def test_a_long_rewrite_keeps_the_units_that_it_does_not_see():
    # At frame 3 the store is empty, and a chunk of 7 sees nothing of a span of 5; at frame 8 the store holds 0 to 3.
    scenes = Scenes("span(5) as recent | episodic(9, source=evicted(recent), write=novel(0.7))", lambda f: f)
    for start in range(8):
        scenes.begin(start, 1)
    assert scenes.begin(3, 7) is Event.REWRITE
    assert scenes.held() == []
    assert scenes.begin(10, 1) is Event.ADVANCE
    assert scenes.held() == ["0", "1", "2", "3", "4", "5"]


# --- streams, syncs, refusals -----------------------------------------------------------------------------------


def test_two_streams_share_nothing():
    rule = "episodic(9, write=novel(0.7))"
    a, b = Scenes(rule, lambda f: f), Scenes(rule, lambda f: 0)
    for start in range(0, 9, 3):
        a.begin(start, 3)
        b.begin(start, 3)
    assert a.held() == ["0", "1", "2", "3", "4", "5"]
    assert b.held() == ["0"]


@pytest.mark.parametrize("explicit", [True, False])
def test_a_reset_clears_the_stores(explicit):
    scenes = Scenes("episodic(9, write=novel(0.7))", lambda f: f // 2)
    for start in range(0, 9, 3):
        scenes.begin(start, 3)
    if explicit:
        scenes.rig.stream.reset()
        assert scenes.memory().record == {}
    scenes.begin(0, 3)
    assert (scenes.held(), scenes.memory().record) == ([], {})
    scenes.begin(3, 3)
    assert scenes.held() == ["0", "2"]


def test_the_host_waits_once_for_all_heads(monkeypatch):
    scenes = Scenes("episodic(4, write=novel(0.7)) | episodic(2, unit=chunk) as two", lambda f: f)
    for start in (0, 3):
        scenes.begin(start, 3)
    waits = []

    def noting(name, real):
        return lambda tensor, *args: (waits.append(name), real(tensor, *args))[1]

    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, *a, real=real, name=name: (waits.append(name), real(t, *a))[1]
        )
    rig = scenes.rig
    rig.stream.begin(6, 3, decider(rig.pool, Turning(rig.theta, 0, rig.style)))
    monkeypatch.undo()
    assert waits == ["tolist"]
    assert len(scenes.held()) == 4


def test_a_repeat_computes_nothing():
    scenes = Scenes("episodic(4)", lambda f: f)
    scenes.begin(0, 3)

    def decider(*args):
        raise AssertionError

    assert scenes.rig.stream.begin(0, 3, decider) is Event.REPEAT


def test_a_store_of_another_kind_needs_its_own_decider():
    from headforce.policy import op as registry

    @policy_op("hoard")
    @dataclass(frozen=True)
    class Hoard(StoreOp):
        slots: int = 2
        evict: str = "fifo"

        def units(self, arrived):
            return tuple(FrameSet.of([f]) for f in arrived)

        def bound(self, s, n):
            return sympy.Integer(2)

    try:
        scenes = Scenes(Hoard().as_rule(), lambda f: f)
        scenes.begin(0, 3)
        with pytest.raises(HeadforceError, match="HF-DECISION"):
            scenes.begin(3, 3)
    finally:
        registry._OPS.pop("hoard")
