"""The order and the cuts of a layer's work: the longest reads first, in parts where there are too few of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TILE = 128
"""Query rows of a program, about."""

WAVES = 4
"""Programs for each processor below which reads are cut."""

MOST_PARTS = 8


def schedule(
    reads: npt.NDArray[np.int32], key_rows: npt.NDArray[np.int64], processors: int = 0
) -> npt.NDArray[np.int32]:
    """The reads [L, N, 8] of every layer in the order in which they are to be started, `parts` and `slot` filled in.

    Hardware starts programs in their order, so with the longest first no processor is left with a long one at the end;
    equal ones stay neighbours, which read the same keys at the same time. With fewer than `WAVES` programs for each of
    `processors`, long reads are cut into parts of about equal work. A part takes as many rows of the workspace as the
    read has query rows; see `cuts` for how many there can be.

    Args:
        key_rows: [L, N], the rows that each read reads. processors: of the device; 0 cuts nothing.
    """
    order = np.argsort(-key_rows * (reads[..., 3] > 0), axis=1, kind="stable")
    reads = np.take_along_axis(reads, order[..., None], axis=1)
    work = np.take_along_axis(key_rows, order, axis=1)
    tiles = -(-reads[..., 3].astype(np.int64) // TILE)
    parts = np.ones_like(work)
    if processors:
        total = (tiles * work).sum(axis=1, keepdims=True)
        goal = np.maximum(1, total / (WAVES * processors))
        few = tiles.sum(axis=1, keepdims=True) < WAVES * processors
        parts = np.where(few, np.clip((work / goal).astype(np.int64), 1, MOST_PARTS), 1)
    taken = np.where(parts > 1, parts * reads[..., 3], 0)
    reads[..., 6] = parts
    reads[..., 7] = np.cumsum(taken, axis=1) - taken
    return reads


def cuts(queries: int, tokens: int, processors: int) -> tuple[int, int]:
    """The most parts that a read may have, and the rows of the workspace that all parts of a layer may take.

    `queries` is the number of batch rows times heads, each with `tokens` query rows. Where they make programs enough
    nothing is cut. Otherwise no part is smaller than the goal, and a tile has `TILE` rows at most.
    """
    if queries * -(-tokens // TILE) >= WAVES * processors:
        return 1, 0
    return MOST_PARTS, WAVES * processors * TILE
