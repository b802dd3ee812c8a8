"""Target `triton`: the portable kernel, one launch for all heads of a layer. Any GPU that Triton knows."""

from __future__ import annotations

from torch import Tensor

from .registry import target


@target("triton", fuses_rope=True, capturable=True)
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
    from ..attention import PORTABLE, layer_attention  # lazy: a machine without triton has the other targets

    return layer_attention(PORTABLE, query, key, value, reads, runs, theta, first_pair, style, scale)
