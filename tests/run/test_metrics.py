"""Metrics, against numbers worked out by hand."""

import doctest
import math

import numpy as np
import pytest

from headforce.run import metrics
from headforce.run.metrics import changes, chunk_psnr, discontinuity, frames_of_chunks, peak_of, psnr, squared_errors


def video(*values, dtype=np.float32):
    """One frame for each value, 2 x 2 pixels of one channel."""
    return np.stack([np.full((2, 2, 1), value, dtype) for value in values])


def test_doctests():
    assert doctest.testmod(metrics).failed == 0
    assert doctest.testmod(metrics).attempted >= 3


def test_peak():
    assert peak_of(video(3, 7, dtype=np.uint8)) == 255
    assert peak_of(video(-2, 6)) == 8
    assert peak_of(video(5, 5)) == 1  # a range of nothing would make every error infinitely large


def test_psnr_of_bytes_does_not_wrap_around():
    errors = squared_errors(video(0, 255, dtype=np.uint8), video(255, 250, dtype=np.uint8))
    assert errors == [255**2, 25]
    assert psnr(errors[:1], 255.0) == 0
    assert psnr(errors[1:], 255.0) == pytest.approx(34.15, abs=0.005)  # 20 log10(255 / 5)


def test_psnr_takes_the_mean_before_the_logarithm():
    # Errors of 1 and 0 at a peak of 10: 10 log10(100 / 0.5), not the mean of 20 and infinity.
    assert psnr([1.0, 0.0], 10.0) == pytest.approx(23.0103)
    assert psnr([0.0, 0.0], 10.0) == math.inf


def test_every_chunk_has_its_own_frames():
    errors = squared_errors(video(0, 0, 0, 0), video(0, 1, 10, 10))
    assert errors == [0, 1, 100, 100]
    assert chunk_psnr(errors, [2, 1, 1], 10.0) == pytest.approx([23.0103, 0.0, 0.0], abs=1e-4)
    assert chunk_psnr(errors, [1, 3], 10.0)[0] == math.inf


def test_changes():
    assert changes(video(0, 1, 5, 2)) == [1, 4, 3]
    assert changes(video(250, 5, dtype=np.uint8)) == [245]
    assert changes(video(1)) == []


def test_discontinuity():
    deltas = [1, 1, 4, 1, 1, 6, 1, 1]  # jumps where three chunks of three meet; the mean of all is 2
    assert discontinuity(deltas, 3) == 5 / 2
    assert discontinuity(deltas, 2) == 6 / 2  # one seam: the largest alone
    assert discontinuity([2, 2, 2], 2) == 1
    assert discontinuity(deltas, 1) is None
    assert discontinuity([0, 0], 2) is None
    assert discontinuity([], 2) is None
    assert discontinuity([1, 3], 9) == 1  # more seams than changes: all of them


@pytest.mark.parametrize(
    ("chunks", "frames", "expected"),
    [
        ([3, 3], 6, [3, 3]),  # latents
        ([3, 3], 21, [9, 12]),  # Wan: 1 + 4 (6 - 1)
        ([1, 3], 13, [1, 12]),
        ([3] * 7, 81, [9, *[12] * 6]),  # 81 pictures of 21 latent frames, as published
        ([3, 3], 24, [12, 12]),
        ([3, 3], 7, None),
        ([3, 3], 5, None),
        ([1], 4, [4]),
    ],
)
def test_pictures_of_a_chunk(chunks, frames, expected):
    assert frames_of_chunks(chunks, frames) == expected
    assert expected is None or sum(expected) == frames
