"""Target `hopper`: the kernel that overlaps loads, products and exponentials by hand. H100 and H200 only."""

from __future__ import annotations

from torch import Tensor

from .registry import target


@target("hopper", least_rows=128, fuses_rope=True, capturable=True)
def hopper(
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
    """See `kernels.reference.ragged_attention`. HF-KERNEL for what the kernel does not take."""
    from ..attention import HOPPER, layer_attention  # lazy: a machine without triton has the other targets

    return layer_attention(HOPPER, query, key, value, reads, runs, theta, first_pair, style, scale)
