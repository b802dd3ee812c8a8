"""How far two videos are apart, and how much a video jumps. Videos are arrays [frames, height, width, channels]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Video = NDArray[Any]


def peak_of(reference: Video) -> float:
    """The range of values that PSNR is relative to: 255 for 8-bit pixels, else the range of the reference."""
    return 255.0 if reference.dtype == np.uint8 else float(np.ptp(reference)) or 1.0


def squared_errors(reference: Video, video: Video) -> list[float]:
    """The mean squared error of each frame, over all its pixels and channels."""
    pairs = zip(reference, video, strict=True)
    return [float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)) for a, b in pairs]


def psnr(errors: Sequence[float], peak: float) -> float:
    """Peak signal-to-noise ratio in dB of frames with these mean squared errors; infinite if they are 0.

    10 log10(peak^2 / mean squared error), the mean taken over the frames before the logarithm (ITU-T J.340).

    >>> psnr([0.0, 1.0], peak=10.0)
    23.010299956639813
    """
    error = sum(errors) / len(errors)
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def chunk_psnr(errors: Sequence[float], chunks: Sequence[int], peak: float) -> list[float]:
    """`psnr` of each chunk. `chunks`: the frames of each, which together are the video's."""
    ends = list(accumulate(chunks))
    return [psnr(errors[end - size : end], peak) for size, end in zip(chunks, ends, strict=True)]


def changes(video: Video) -> list[float]:
    """delta_t, the mean absolute difference between frame t and frame t+1, for t = 0 .. frames-2."""
    return [float(np.abs(b.astype(np.float64) - a).mean()) for a, b in pairwise(video)]


def discontinuity(deltas: Sequence[float], chunks: int) -> float | None:
    """How much a video of `chunks` chunks jumps: the mean of its chunks-1 largest changes over the mean of all.

    Chunk discontinuity of Forcing-KV (arXiv 2605.09681): K chunks have K-1 seams, so a video that jumps where chunks
    meet has K-1 large changes. 1 means evenly moving. The paper takes delta_t from the optical flow that RAFT finds
    between two frames; here it is the difference of the frames (`changes`), which needs no model. So numbers of the two
    kinds cannot be compared with each other.

    Returns None for a single chunk, and for a video in which nothing moves.

    >>> discontinuity([1.0, 1.0, 4.0, 1.0, 1.0, 4.0, 1.0, 1.0], chunks=3)
    2.2857142857142856
    """
    mean = sum(deltas) / len(deltas) if deltas else 0.0
    seams = min(chunks - 1, len(deltas))
    if seams < 1 or mean == 0:
        return None
    return sum(sorted(deltas)[-seams:]) / seams / mean


def frames_of_chunks(chunks: Sequence[int], frames: int) -> list[int] | None:
    """How many of a video's `frames` each chunk of latent frames made, or None if the numbers do not fit.

    A VAE makes a fixed number of frames from each latent frame; those that are causal in time, such as Wan's, make a
    single one from the first (1 + 4 (F-1) pictures from F latent frames).

    >>> frames_of_chunks([3, 3], 6), frames_of_chunks([3, 3], 21), frames_of_chunks([3, 3], 24)
    ([3, 3], [9, 12], [12, 12])
    """
    total = sum(chunks)
    if frames % total == 0:
        return [frames // total * size for size in chunks]
    if total > 1 and (frames - 1) % (total - 1) == 0 and frames > total:
        each = (frames - 1) // (total - 1)
        return [1 + each * (chunks[0] - 1), *(each * size for size in chunks[1:])]
    return None
