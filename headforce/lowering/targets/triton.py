"""Target `triton`: the portable kernel, one launch for all heads of a layer."""

from __future__ import annotations

from torch import Tensor

from ...kernels.config import config_for
from ..pool import processors_of
from ..schedule import cuts
from .registry import target


@target("triton")
def triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
) -> Tensor:
    """See `kernels.reference.ragged_attention`. Needs a GPU, or Triton's interpreter."""
    from ..launch import attention  # lazy: a machine without triton has the other targets

    batch, tokens, heads, _ = query.shape
    parts, rows = cuts(batch * heads, tokens, processors_of(query.device))
    tables = (reads, runs, theta, first_pair, style, scale)
    config = config_for(query, value.shape[-1])
    return attention(query, key, value, *tables, config=config, most_parts=parts, workspace_rows=rows)[0]
