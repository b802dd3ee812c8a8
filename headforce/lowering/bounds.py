"""Whether tables stay inside the tensors that they are about: a kernel itself does not look.

Tables that headforce plans are checked on the host, once for a chunk; `HEADFORCE_CHECK_TABLES=1` makes every launch
check the tables that it was given, on their device, which waits for it.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import HeadforceError
from ..kernels.reference import READ_FIELDS, RUN_FIELDS


def check_bounds(
    reads: Any, runs: Any, *, batch: int, heads: int, tokens: int, rows: int, most_parts: int | None = None
) -> None:
    """HF-TABLES if `reads` or `runs` name what is not there.

    Args:
        reads, runs: [..., N, 8] and [..., N, 3], arrays or tensors; see `kernels.reference`.
        batch, heads, tokens: of the query. rows: that a run may name. most_parts: that a launch is ready for.
    """
    if reads.shape[-1] != len(READ_FIELDS) or runs.shape[-1] != len(RUN_FIELDS):
        raise HeadforceError(
            "HF-TABLES",
            found=f"tables with {reads.shape[-1]} and {runs.shape[-1]} columns",
            needed=f"{len(READ_FIELDS)} ({', '.join(READ_FIELDS)}) and {len(RUN_FIELDS)} ({', '.join(RUN_FIELDS)})",
        )
    row, head, query_row, query_rows, first_run, count, parts, _ = (reads[..., i] for i in range(len(READ_FIELDS)))
    used = query_rows > 0
    ends = runs[..., 0].astype("int64") if hasattr(runs, "astype") else runs[..., 0].long()
    limits = {
        "a batch row": (row, batch - 1),
        "a head": (head, heads - 1),
        "a query row": (query_row * used, tokens - 1),
        "query rows up to": (query_row + query_rows, tokens),
        "a run": (first_run * used, runs.shape[-2] - 1),
        "runs up to": ((first_run + count) * used, runs.shape[-2]),
        "a row": (ends * (runs[..., 1] > 0), rows - 1),
        "rows up to": ((ends + runs[..., 1]) * (runs[..., 1] > 0), rows),
    }
    if most_parts is not None:
        limits["parts"] = (parts * used, most_parts)
    for what, (value, limit) in limits.items():
        if bool(((value < 0) | (value > limit)).any()):
            found = int(value.min()) if bool((value < 0).any()) else int(value.max())
            raise HeadforceError("HF-TABLES", found=f"{what} {found}", needed=f"0 to {limit}")


def checks_launches() -> bool:
    """Whether every launch checks its tables."""
    return os.environ.get("HEADFORCE_CHECK_TABLES") == "1"
