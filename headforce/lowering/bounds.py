"""Whether tables stay inside the tensors that they are about: a kernel itself does not look.

Tables that headforce plans are checked on the host, once for a chunk; `HEADFORCE_CHECK_TABLES=1` makes every launch
check the tables that it was given, on their device, which waits for it.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import HeadforceError
from ..kernels.reference import READ_FIELDS, RUN_FIELDS
from .schedule import TILE


def check_bounds(
    reads: Any,
    runs: Any,
    *,
    batch: int,
    heads: int,
    tokens: int,
    rows: int,
    part_tiles: int | None = None,
) -> None:
    """HF-TABLES if `reads` or `runs` name what is not there.

    Args:
        reads, runs: [..., N, 8] and [..., N, 3], arrays or tensors; see `kernels.reference`.
        batch, heads, tokens: of the query. rows: that a run may name.
        part_tiles: tiles of parts that a launch is ready for, see `schedule.part_tiles`; not looked at if None.
    """
    if reads.shape[-1] != len(READ_FIELDS) or runs.shape[-1] != len(RUN_FIELDS):
        raise HeadforceError(
            "HF-TABLES",
            found=f"tables with {reads.shape[-1]} and {runs.shape[-1]} columns",
            needed=f"{len(READ_FIELDS)} ({', '.join(READ_FIELDS)}) and {len(RUN_FIELDS)} ({', '.join(RUN_FIELDS)})",
        )
    row, head, query_row, query_rows, first_run, count, parts, slot = (
        _wide(reads[..., i]) for i in range(len(READ_FIELDS))
    )
    run_row, run_rows = _wide(runs[..., 0]), _wide(runs[..., 1])
    used, cut = query_rows > 0, (query_rows > 0) & (parts > 1)
    workspace = None if part_tiles is None else part_tiles * TILE
    limits = {
        "a batch row": (row, 0, batch - 1),
        "a head": (head, 0, heads - 1),
        "query rows": (query_rows, 0, tokens),
        "a query row": (query_row * used, 0, tokens - 1),
        "query rows up to": ((query_row + query_rows) * used, 0, tokens),
        "query rows of all reads": (query_rows.sum(-1), 0, batch * heads * tokens),
        "runs": (count, 0, runs.shape[-2]),
        "a run": (first_run * (used & (count > 0)), 0, max(0, runs.shape[-2] - 1)),  # without runs, all counts are 0
        "runs up to": ((first_run + count) * used, 0, runs.shape[-2]),
        "rows": (run_rows, 0, rows),
        "a row": (run_row * (run_rows > 0), 0, rows - 1),
        "rows up to": ((run_row + run_rows) * (run_rows > 0), 0, rows),
        "parts": (parts * used + ~used, 1, None),
        "tiles of all parts": ((parts * -(-query_rows // TILE) * cut).sum(-1), 0, part_tiles),
        "a row of the workspace": (slot * cut, 0, workspace),
        "rows of the workspace up to": ((slot + parts * query_rows) * cut, 0, workspace),
    }
    for what, (value, least, most) in limits.items():
        _check(what, value, least, most)


def check_pages(pages: Any, count: int) -> None:
    """HF-TABLES if `pages` name a page that is not among `count`."""
    _check("a page", pages, 0, count - 1)


def _check(what: str, value: Any, least: int, most: int | None) -> None:
    beyond = value < least if most is None else (value < least) | (value > most)
    if bool(beyond.any()):
        needed = f"{least} or more" if most is None else f"{least} to {most}"
        raise HeadforceError("HF-TABLES", found=f"{what} {int(value[beyond][0])}", needed=needed)


def _wide(column: Any) -> Any:
    """In 64 bits, so that sums do not overflow."""
    return column.astype("int64") if hasattr(column, "astype") else column.long()


def checks_launches() -> bool:
    """Whether every launch checks its tables."""
    return os.environ.get("HEADFORCE_CHECK_TABLES") == "1"
