"""Target `by_head`: one `scaled_dot_product_attention` for every read, over a copy of its rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from headforce.kernels.reference import head_rows
from headforce.kernels.rotation import turn
from headforce.lowering.targets import target


@target("by_head")
def by_head(
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
    """See `headforce.kernels.reference.ragged_attention`. Slow on many heads, and simple: a place to begin."""
    out = query.new_zeros((*query.shape[:3], value.shape[-1]))
    for batch, head, query_row, query_rows, first, count, *_ in reads.tolist():
        if not query_rows or not count:
            continue
        keys, values = (head_rows(source, batch, head, query.shape[2]) for source in (key, value))
        k, v = [], []
        for row, rows, shift in runs[first : first + count].tolist():
            k.append(turn(keys[row : row + rows], shift * theta.to(torch.float64), first_pair, style))
            v.append(values[row : row + rows])
        part = (batch, slice(query_row, query_row + query_rows), head)
        operands = (x.to(query.dtype)[None, None] for x in (query[part], torch.cat(k), torch.cat(v)))
        out[part] = F.scaled_dot_product_attention(*operands, scale=scale)[0, 0]
    return out
