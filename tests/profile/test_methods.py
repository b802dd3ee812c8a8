"""The published classifiers, by their formulas, on numbers that are made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce import HeadforceError
from headforce.policy import assignment
from headforce.presets import Labels
from headforce.profile.classify import classify_heads, vote
from headforce.profile.methods import find_method, load_methods
from headforce.profile.periodicity import folded_spectrum, period
from headforce.profile.results import label_text

from .made import passed, profile, random_video

LAYERS, HEADS, KEYS = 30, 12, 21


def test_every_method_is_registered_with_a_preset_that_takes_its_classes():
    assert list(load_methods()) == ["dummy", "forcing_kv", "head_forcing", "pyramid"]
    for method in load_methods().values():
        mass = np.random.default_rng(0).dirichlet([0.5] * KEYS, (LAYERS, HEADS))
        found = method(passed(mass, np.random.default_rng(1).normal(0, 1, mass.shape)))
        assert set(found.labels.classes) <= set(method.classes)
        assert found.score.shape == (LAYERS, HEADS)
        with pytest.raises(HeadforceError, match=r"HF-PROFILE-METHOD.*constant 'nothing'"):
            method(passed(mass), nothing=1)
    with pytest.raises(HeadforceError, match=r"HF-PROFILE-METHOD.*did you mean 'pyramid'"):
        find_method("pyramids")


@pytest.mark.parametrize(
    ("name", "given", "needed"),
    [
        ("forcing_kv", {"skip": 1.5}, "a whole number for skip"),
        ("forcing_kv", {"skip": None}, "a whole number for skip"),
        ("forcing_kv", {"skip": True}, "a whole number for skip"),
        ("forcing_kv", {"threshold": None}, "a number for threshold"),
        ("forcing_kv", {"threshold": "abc"}, "a number for threshold"),
        ("forcing_kv", {"threshold": False}, "a number for threshold"),
        ("forcing_kv", {"static_share": "abc"}, "a number, or null, for static_share"),
        ("pyramid", {"harmonics": 2.5}, "a whole number for harmonics"),
        ("pyramid", {"signs": None}, "a number for signs"),
        ("head_forcing", {"sink": 1.5}, "a whole number for sink"),
        ("head_forcing", {"by_layer": 1}, "true or false for by_layer"),
        ("head_forcing", {"by_layer": None}, "true or false for by_layer"),
        ("dummy", {"first_frames": 1.0}, "a whole number for first_frames"),
    ],
)
def test_a_constant_is_of_the_kind_of_its_default(name, given, needed):
    with pytest.raises(HeadforceError) as caught:
        find_method(name).check(given)
    assert (caught.value.code, caught.value.needed) == ("HF-PROFILE-METHOD", needed)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("forcing_kv", {"threshold": 1, "skip": 0, "static_share": None}),
        ("forcing_kv", {"static_share": 0.5}),
        ("head_forcing", {"by_layer": True, "anchor": 1}),
        ("dummy", {"dummies": 3}),  # more than the heads of what it is tried on
        ("dummy", {"first_frames": 30}),
        ("pyramid", {"shortest": 5}),
    ],
)
def test_constants_that_are_right_can_be_tried_out(name, given):
    find_method(name).try_out(given)


@pytest.mark.parametrize(
    ("name", "given", "code"),
    [
        ("pyramid", {"signs": 2}, "HF-PROFILE-METHOD"),
        ("forcing_kv", {"skip": -1}, "HF-PROFILE-METHOD"),
        ("head_forcing", {"sink": 0}, "HF-PROFILE-METHOD"),
        ("dummy", {"dummies": 1.5}, "HF-POLICY-VALUE"),
        ("dummy", {"first_frames": 0}, "HF-POLICY-VALUE"),
        ("dummy", {"nothing": 0}, "HF-PROFILE-METHOD"),
    ],
)
def test_constants_out_of_range_are_found_without_a_profile(name, given, code):
    with pytest.raises(HeadforceError, match=code):
        find_method(name).try_out(given)


# --- Forcing-KV ----------------------------------------------------------------------------------------------------


def by_hand(mass, skip, last=4):
    """The tool's score: sum(attn[-4:]) / sum(attn[skip:])."""
    return mass[..., -last:].sum(-1) / mass[..., skip:].sum(-1)


@pytest.mark.parametrize(("skip", "threshold"), [(1, 0.8), (3, 0.8), (1, 0.5)], ids=["tool", "labels", "older"])
def test_forcing_kv_is_a_ratio(skip, threshold):
    mass = np.random.default_rng(0).dirichlet([0.3] * KEYS, (LAYERS, HEADS))
    mass[:, ::2, -4:] *= 20  # heads that look at the newest frames
    mass /= mass.sum(-1, keepdims=True)
    found = find_method("forcing_kv")(passed(mass), skip=skip, threshold=threshold)
    np.testing.assert_allclose(found.score, by_hand(mass, skip), rtol=1e-5)
    expected = np.where(by_hand(mass, skip) >= threshold, "static", "dynamic")
    assert (np.array(found.labels.layers) == expected).all()
    assert 0.2 < (expected == "static").mean() < 0.8


def test_forcing_kv_leaves_the_sink_out():
    """A head on its sink is judged by the rest; one wholly on it has no rest."""
    mass = np.full((1, 2, KEYS), 1e-3)
    mass[0, :, 0] = 1.0
    mass[0, 0, -4:] = 0.2
    mass[0, 1, 1:] = 0
    found = find_method("forcing_kv")(passed(mass))
    assert found.labels == Labels((("static", "dynamic"),))
    assert found.score[0, 1] == 0


def test_forcing_kv_of_the_14b_model_is_half_of_every_layer():
    mass = np.random.default_rng(0).dirichlet([0.3] * KEYS, (40, 40))
    found = find_method("forcing_kv")(passed(mass), static_share=0.5)
    assert found.labels.counts() == {"static": 800, "dynamic": 800}
    for layer, of_layer in enumerate(found.labels.layers):
        static = [h for h, name in enumerate(of_layer) if name == "static"]
        assert len(static) == 20
        assert found.score[layer, static].min() >= np.sort(found.score[layer])[20]


# --- Head Forcing --------------------------------------------------------------------------------------------------


def test_v11_head_forcing_has_90_anchors_54_local_and_216_memory_heads():
    mass = np.random.default_rng(0).dirichlet([0.3] * KEYS, (LAYERS, HEADS))
    found = find_method("head_forcing")(passed(mass))
    assert found.labels.counts() == {"memory": 216, "anchor": 90, "local": 54}
    names, sink, chunk = np.array(found.labels.layers), mass[..., 0], mass[..., -3:].sum(-1)
    assert sink[names == "anchor"].min() >= sink[names != "anchor"].max()
    assert chunk[names == "local"].min() >= chunk[names == "memory"].max()


def test_head_forcing_by_layer_and_among_equals():
    mass = np.random.default_rng(0).dirichlet([0.3] * KEYS, (LAYERS, HEADS))
    by_layer = find_method("head_forcing")(passed(mass), by_layer=True).labels
    for layer in range(LAYERS):
        counts = {name: len(heads) for name, heads in by_layer.of(layer).items()}
        assert counts == {"anchor": 3, "local": 2, "memory": 7}
    equal = find_method("head_forcing")(passed(np.ones((1, 10, KEYS))), sink=3).labels
    assert equal.layers[0] == ("anchor",) * 3 + ("local",) * 2 + ("memory",) * 5
    with pytest.raises(HeadforceError, match="HF-PROFILE-METHOD"):
        find_method("head_forcing")(passed(mass), anchor=1.5)


# --- Dummy Forcing -------------------------------------------------------------------------------------------------


@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 9))
def test_dummy_is_the_joint_assignment(dummies, first_frames, seed):
    mass = np.random.default_rng(seed).dirichlet([0.4] * 9, (2, 6))
    found = find_method("dummy")(passed(mass, chunk=2), dummies=dummies, first_frames=first_frames)
    names = [name for layer in found.labels.layers for name in layer]
    assert names.count("dummy") == dummies
    first = mass[..., :first_frames].sum(-1).ravel()
    middle = mass[..., first_frames:6].sum(-1).ravel()
    gains = assignment.normalised(first.tolist(), middle.tolist())
    lost = sorted(max(gain) for gain in gains)[:dummies]
    assert math.isclose(sum(lost), sum(max(g) for g, n in zip(gains, names, strict=True) if n == "dummy"), rel_tol=1e-4)
    for (a, b), name in zip(gains, names, strict=True):
        assert name == "dummy" or abs(a - b) < 1e-6 or name == ("neighbor" if b > a else "sink")


def test_dummy_needs_frames_between_the_first_and_the_chunk():
    with pytest.raises(HeadforceError, match="HF-PROFILE-DATA"):
        find_method("dummy")(passed(np.ones((1, 2, 3)), chunk=0))
    with pytest.raises(HeadforceError, match="HF-POLICY-VALUE"):
        find_method("dummy")(passed(np.ones((1, 2, 9)), chunk=2), dummies=1.5)


# --- Pyramid Forcing -----------------------------------------------------------------------------------------------


def wave(period_, n=18, phase=0.0):
    return np.cos(2 * np.pi * (np.arange(n) + phase) / period_)


def logits(*signals):
    """[1, heads, keys]: scores of past frames, and of a chunk that must not matter."""
    return np.concatenate([np.array(signals), np.full((len(signals), 3), -50.0)], axis=1)[None]


@pytest.mark.parametrize("count", [17, 18, 33, 69])
@pytest.mark.parametrize("true", [3.0, 4.0, 5.0, 6.0])
def test_periods_are_found(count, true):
    """Within one step of the frequencies that so many frames can tell apart."""
    signals = np.array([wave(true, count + 1, phase) + 0.3 for phase in np.linspace(0, true, 7)])
    found = period(signals[:, None])
    assert (np.abs(count / found - count / true) <= 1.0).all()


def test_the_folded_spectrum_is_the_sum_over_harmonics():
    signal = np.random.default_rng(0).normal(size=20)
    steps = np.diff(signal)
    weighted, at = (steps - steps.mean()) * np.hanning(19), np.arange(19)
    amplitude = [abs((weighted * np.exp(-2j * np.pi * k * at / 19)).sum()) for k in range(10)]
    amplitude[0] = 0.0
    spectrum, periods = folded_spectrum(signal, 4, 0.5)
    for k in range(1, 10):
        expected = sum(0.5 ** (h - 1) * amplitude[k * h] for h in range(1, 5) if k * h < 10)
        assert math.isclose(spectrum[k - 1], expected, rel_tol=1e-9)
        assert periods[k - 1] == 19 / k


def test_pyramid_decides_by_signs_then_by_period_then_by_the_mean():
    slow = np.linspace(-1, 1, 18)
    signals = (
        (wave(4) + 3, "anchor"),  # all above zero: the period does not matter
        (wave(4) - 3, "veil"),
        (wave(4), "wave"),
        (wave(6), "wave"),
        (slow + 0.1, "anchor"),
        (slow - 0.1, "veil"),
        (np.r_[np.full(4, -1.0), np.full(14, 1.0)] * np.linspace(1, 2, 18), "anchor"),  # 14 of 18 are fewer than 80 %
    )
    mass = np.ones((1, len(signals), KEYS))
    found = find_method("pyramid")(passed(mass, logits(*(signal for signal, _ in signals))))
    assert found.labels.layers[0] == tuple(name for _, name in signals)
    stricter = find_method("pyramid")(passed(mass, logits(*(signal for signal, _ in signals))), shortest=5.0)
    assert stricter.labels.layers[0][3] != "wave"
    with pytest.raises(HeadforceError, match="HF-PROFILE-DATA"):
        find_method("pyramid")(passed(np.ones((1, 2, 9)), chunk=2))
    with pytest.raises(HeadforceError, match="HF-PROFILE-METHOD"):
        find_method("pyramid")(passed(mass), signs=0)


@pytest.mark.parametrize("true", [3.0, 4.0, 5.0])
def test_a_sink_is_no_part_of_a_spectrum(true):
    """Its frames lie far behind the others, whatever their scores are: the spectrum is that of the frames in a row."""
    phases = np.linspace(0, true, 7)
    rest = np.array([wave(true, 15, phase) for phase in phases])
    for first in (-20.0, 0.0, 20.0):
        signals = np.concatenate([np.full((len(phases), 3), first), rest], axis=1)
        found = passed(np.ones((1, len(phases), KEYS)), logits(*signals), chunk=20, sink=3)
        assert found.past == (0, 1, 2, *range(45, 60))
        np.testing.assert_array_equal(found.logits_in_a_row[0, :, 0], rest.astype(np.float32))
        assert find_method("pyramid")(found).labels.layers[0] == ("wave",) * len(phases)
    whole = passed(np.ones((1, len(phases), KEYS)), logits(*signals), chunk=6, sink=3)
    assert whole.past == tuple(range(18))
    np.testing.assert_array_equal(whole.logits_in_a_row, whole.logits)


def test_frames_behind_a_gap_have_to_be_enough_for_a_spectrum():
    """Ten past frames, of which seven are in a row."""
    with pytest.raises(HeadforceError, match=r"HF-PROFILE-DATA.*found 7 past frames in a row; needed at least 8"):
        find_method("pyramid")(passed(np.ones((1, 2, 13)), chunk=20, window=13, sink=3))
    find_method("pyramid")(passed(np.ones((1, 2, 13)), chunk=20, window=13, sink=2))
    with pytest.raises(HeadforceError, match="found 0 past frames in a row"):
        find_method("pyramid")(passed(np.ones((1, 2, 3)), chunk=0))


# --- votes and files -----------------------------------------------------------------------------------------------


def test_labels_are_voted_on_video_by_video():
    one, other = Labels((("a", "b"), ("a", "a"))), Labels((("a", "a"), ("b", "a")))
    labels, votes = vote([one, other, one])
    assert labels == one
    assert votes.tolist() == [[1.0, 2 / 3], [2 / 3, 1.0]]
    assert vote([other, one])[0] == other  # a tie: the earliest

    rng = np.random.default_rng(0)
    videos = [[passed(rng.dirichlet([0.4] * KEYS, (2, 6)))] for _ in range(5)]
    found = classify_heads(profile(*videos), "forcing_kv", threshold=0.5)
    each = [find_method("forcing_kv")(video[0], threshold=0.5).labels for video in videos]
    assert [video.labels for video in found.videos] == each
    assert found.labels == vote(each)[0]


@pytest.mark.parametrize("name", ["dummy", "forcing_kv", "head_forcing", "pyramid"])
def test_labels_are_written_as_published_and_read_again(name, tmp_path):
    found = classify_heads(profile(random_video(3, 8)), name)
    path = tmp_path / f"labels{'.csv' if name == 'pyramid' else '.json'}"
    path.write_text(label_text(found.method, found.labels))
    assert Labels.load(path) == found.labels


def test_which_pass_is_judged():
    rng = np.random.default_rng(0)
    masses = {(chunk, step): rng.dirichlet([0.4] * 9, (2, 6)) for chunk in (2, 3, 4) for step in (0, 1)}
    made = profile([passed(mass, chunk=c, step=s, window=9) for (c, s), mass in masses.items()])
    method = find_method("forcing_kv")
    for chunk, step, key in ((-1, -1, (4, 1)), (2, 0, (2, 0)), (-2, -1, (3, 1)), (3, 0, (3, 0))):
        found = classify_heads(made, method, chunk=chunk, step=step, threshold=0.6)
        assert found.labels == method(passed(masses[key], chunk=key[0], window=9), threshold=0.6).labels
    for chunk, step in ((7, 0), (-4, 0), (2, 2)):
        with pytest.raises(HeadforceError, match="HF-PROFILE-DATA"):
            classify_heads(made, method, chunk=chunk, step=step)
