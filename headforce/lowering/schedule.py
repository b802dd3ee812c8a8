"""The order and the cuts of a layer's work, and the programs of the launch that does it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cuts import PARTS, best_parts

TILE = 128
"""Query rows of a program as the planner counts them. The tiles of kernels have as many, or a half, a quarter, ..."""

ENOUGH = 32
"""Programs for each processor from which on no read is cut: what is lost at the end is then too little."""


def schedule(
    reads: npt.NDArray[np.int32], key_rows: npt.NDArray[np.int64], processors: int = 0, room: int = 0
) -> npt.NDArray[np.int32]:
    """The reads [L, N, 8] of every layer in the order in which they are to be started, `parts` and `slot` filled in.

    Hardware starts programs in their order, so with the longest first no processor is left with a long one at the end;
    equal ones stay neighbours, which read the same keys at the same time. Reads are cut where their parts fill the time
    in which processors would wait for the last programs, see `cuts`. A part takes as many rows of the workspace as the
    read has query rows.

    Args:
        key_rows: [L, N], the rows that each read reads. processors: of the device.
        room: `part_tiles` of the launch; with 0 nothing is cut.
    """
    work = key_rows * (reads[..., 3] > 0)
    order = _longest_first(work)
    reads, work = np.take_along_axis(reads, order[..., None], axis=1), np.take_along_axis(work, order, axis=1)
    reads[..., 6] = _parts(reads[..., 3], work, processors, room)
    order = _longest_first(-(-work // reads[..., 6]))
    reads = np.take_along_axis(reads, order[..., None], axis=1)
    taken = np.where(reads[..., 6] > 1, reads[..., 6].astype(np.int64) * reads[..., 3], 0)
    reads[..., 7] = np.cumsum(taken, axis=1) - taken
    return reads


def _longest_first(work: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.argsort(-work, axis=1, kind="stable")


def _parts(
    query_rows: npt.NDArray[np.int32], work: npt.NDArray[np.int64], processors: int, room: int
) -> npt.NDArray[np.int64]:
    parts = np.ones_like(work)
    tiles = -(-query_rows // TILE)
    for layer, used in enumerate(np.count_nonzero(work, axis=1) if room else ()):
        its_tiles, its_work = (tuple(table[layer, :used].tolist()) for table in (tiles, work))
        parts[layer, :used] = best_parts(its_tiles, its_work, processors, room)
    return parts


def part_tiles(reads: int, queries: int, tokens: int, processors: int) -> int:
    """The tiles of `TILE` query rows that all parts of reads that are cut may have together, 0 where none may be cut.

    It is settled by shapes: a launch that is captured has a workspace, and programs, for whatever is planned later.

    Args:
        reads: of the layer. queries: batch rows times heads, each of `tokens` query rows.
    """
    return PARTS * processors if _tiles(reads, queries, tokens, TILE) < ENOUGH * processors else 0


def programs(reads: int, queries: int, tokens: int, height: int, room: int) -> int:
    """The most programs that reads can have, in tiles of `height` query rows: one for each tile of each part.

    Args:
        reads, queries, tokens: as in `part_tiles`; `room` is what it returned.
    """
    return _tiles(reads, queries, tokens, height) + room * max(1, TILE // height)


def _tiles(reads: int, queries: int, tokens: int, height: int) -> int:
    """The most tiles, if no query row is in two reads: each read ends with one that is not full."""
    return min(reads * -(-tokens // height), (queries * tokens + reads * (height - 1)) // height)
