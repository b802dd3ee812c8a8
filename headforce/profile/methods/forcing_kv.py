"""Forcing-KV: static heads look at the chunk and the newest frame (arXiv 2605.09681)."""

from __future__ import annotations

import numpy as np

from ...errors import HeadforceError
from ...presets import Labels
from ..measured import Pass
from .registry import Found, method


@method("forcing_kv", ("static", "dynamic"), preset="forcing_kv", form=Labels.to_forcing_kv)
def forcing_kv(
    passed: Pass, threshold: float = 0.8, skip: int = 1, transition: int = 1, static_share: float | None = None
) -> Found:
    """Static where (A_chunk + A_transition) / (A_total - A_sink) reaches a threshold, else dynamic.

    Args:
        threshold: the paper's alpha; 0.5 in an older version of the tool.
        skip: oldest frames that count as the sink. The released tool skips 1; the published labels say that they were
            made with 3.
        transition: newest past frames that count with the chunk.
        static_share: instead of the threshold, this share of the heads of every layer is static, those with the highest
            ratio, as in the published labels of the 14B model (0.5).

    Frames that are both of the sink and of the newest count with the newest. A head all of whose attention is on the
    sink has a ratio of 0.
    """
    if not 0 <= threshold <= 1 or skip < 0 or transition < 0 or not 0 <= (static_share or 0) <= 1:
        raise HeadforceError(
            "HF-PROFILE-METHOD",
            site="forcing_kv",
            found=f"threshold={threshold}, skip={skip}, transition={transition}, static_share={static_share}",
            needed="shares from 0 to 1 and whole numbers of frames",
        )
    newest = passed.keys[max(0, len(passed.past) - transition) :]
    near = passed.on(newest)
    rest = passed.on([*passed.keys[skip:], *newest])
    ratio = np.divide(near, rest, out=np.zeros_like(near), where=rest > 0)
    if static_share is None:
        static = ratio >= threshold
    else:
        count = round(static_share * ratio.shape[1])
        rank = np.argsort(np.argsort(-ratio, axis=1, kind="stable"), axis=1, kind="stable")
        static = rank < count
    return Found.of(np.where(static, "static", "dynamic"), ratio)
