"""How regularly a head comes back to frames: the folded spectrum of its scores over the past."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError

Numbers = npt.NDArray[np.floating[Any]]

LEAST = 8
"""Past frames in a row below which a spectrum says nothing: it has three frequencies then."""


def folded_spectrum(signal: Numbers, harmonics: int = 4, weight: float = 0.5) -> tuple[Numbers, Numbers]:
    """The spectrum of the steps of a signal, each frequency with a share of its multiples.

    The steps are freed of their mean and weighted with a Hann window; frequency k has the sum of `weight`**(h - 1)
    times the amplitude at h * k, for h up to `harmonics`.

    Args:
        signal: [..., n], a number for each of n frames in a row.

    Returns the spectrum [..., m], without frequency 0, and the period of each frequency in frames [m]. Raises
    HF-PROFILE-DATA for fewer than `LEAST` frames.
    """
    if signal.shape[-1] < LEAST:
        raise HeadforceError(
            "HF-PROFILE-DATA",
            found=f"{signal.shape[-1]} past frames in a row",
            needed=f"at least {LEAST} behind the last gap, such as that of a sink, to tell a period: a longer video, "
            "or a larger window",
        )
    steps = np.diff(signal.astype(np.float64), axis=-1)
    length = steps.shape[-1]
    amplitude = np.abs(np.fft.rfft((steps - steps.mean(-1, keepdims=True)) * np.hanning(length), axis=-1))
    count = amplitude.shape[-1]
    folded = np.zeros_like(amplitude)
    for harmonic in range(1, harmonics + 1):
        multiples = np.arange(0, count, harmonic)
        folded[..., : len(multiples)] += weight ** (harmonic - 1) * amplitude[..., multiples]
    return folded[..., 1:], length / np.arange(1, count)


def period(signals: Numbers, harmonics: int = 4, weight: float = 0.5) -> Numbers:
    """The period in frames at the peak of the folded spectrum, [...]; see `folded_spectrum`.

    `signals` is [..., G, n], one for each query frame. Their spectra are averaged: two query frames see the same wave
    at different phases, so in the mean of the signals a wave as long as the chunk is gone.
    """
    spectrum, periods = folded_spectrum(signals, harmonics, weight)
    return periods[spectrum.mean(-2).argmax(-1)]
