"""Pyramid Forcing: waves, anchors and veils, by the signs and the period of scores (arXiv 2605.13111)."""

from __future__ import annotations

import numpy as np

from ...errors import HeadforceError
from ...presets import Labels
from ..measured import Pass
from ..periodicity import period
from .registry import Found, method


@method("pyramid", ("wave", "anchor", "veil"), preset="pyramid_forcing", form=Labels.to_pyramid)
def pyramid(passed: Pass, signs: float = 0.8, shortest: float = 6.4, harmonics: int = 4, weight: float = 0.5) -> Found:
    """From the mean score before softmax of every past frame.

    - anchor, if at least `signs` of them are above zero; veil, if as many are not;
    - else wave, if the period of their folded spectrum is below `shortest` frames (a spectrum is of frames in a row: of
      a model that keeps a sink, of the newest past frames without a gap);
    - else anchor or veil, as their mean is above zero or not.

    In a profile by query frame, signs and mean are those over all query frames, and the spectrum is the mean of theirs,
    which shows waves as long as the chunk too; the published classification averages scores over the chunk.

    Args:
        signs: the share of signs that decides. shortest: the period under which a head is a wave.
        harmonics, weight: of the folded spectrum. The paper does not give the weight; 0.5 is that of a later
            re-implementation.

    Raises HF-PROFILE-DATA if a pass has too few past frames in a row for a spectrum.
    """
    if not 0 < signs <= 1 or harmonics < 1 or not 0 <= weight <= 1:
        raise HeadforceError(
            "HF-PROFILE-METHOD",
            site="pyramid",
            found=f"signs={signs}, harmonics={harmonics}, weight={weight}",
            needed="shares from 0 to 1, and at least one harmonic",
        )
    logits = passed.logits
    waves = period(passed.logits_in_a_row, harmonics, weight) < shortest
    above = (logits > 0).mean((-1, -2))
    mean = logits.mean((-1, -2), dtype=np.float64)
    names = np.where(waves, "wave", np.where(mean > 0, "anchor", "veil"))
    names = np.where(1 - above >= signs, "veil", names)
    names = np.where(above >= signs, "anchor", names)
    return Found.of(names, mean)
