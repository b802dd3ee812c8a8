"""Target `triton`: the portable kernel, one launch for all heads of a layer."""

from __future__ import annotations

from torch import Tensor

from ...kernels.config import config_for
from ..pool import processors_of
from ..schedule import MOST_PARTS, workspace_rows
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
    from ...kernels.launch import attention  # lazy: a machine without triton has the other targets

    processors = processors_of(query.device)
    config = config_for(query, MOST_PARTS if processors else 1)
    tables = (reads, runs, theta, first_pair, style, scale)
    return attention(query, key, value, *tables, config=config, workspace_rows=workspace_rows(processors))[0]
