"""Heads in front of the batch. Attention takes the two in any order, a policy of heads does not.

K and V of such a layer look like any other's; only the product that makes them shows which axis the weights add.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headforce.testing.recording import Recorder
from headforce.testing.zoo import HEAD_DIM, HEADS, TOKENS, inputs

Project = Callable[[Tensor, Tensor], Tensor]


def batched(x: Tensor, weight: Tensor) -> Tensor:
    """A product for each head and sample; both operands are repeated along what they do not have."""
    x = x[None].expand(HEADS, -1, -1, -1)
    weight = weight[:, None].expand(-1, x.shape[1], -1, -1)
    return torch.bmm(x.flatten(0, 1), weight.flatten(0, 1)).unflatten(0, (HEADS, -1))


HEADS_FIRST: dict[str, Project] = {
    "einsum": lambda x, w: torch.einsum("bsc,hcd->hbsd", x, w),
    "biased": lambda x, w: torch.einsum("bsc,hcd->hbsd", x, w) + w[:, :1, None],
    "matmul": lambda x, w: x[None] @ w[:, None],
    "bmm": batched,
    "rows of all": lambda x, w: torch.bmm(x.flatten(0, 1).expand(HEADS, -1, -1), w).unflatten(1, (x.shape[0], -1)),
    "linear": lambda x, w: F.linear(x, w.mT.flatten(0, 1)).unflatten(-1, (HEADS, -1)).permute(2, 0, 1, 3),
}
BATCH_FIRST: dict[str, Project] = {
    "einsum": lambda x, w: torch.einsum("bsc,hcd->bhsd", x, w),
    "biased": lambda x, w: torch.einsum("bsc,hcd->bhsd", x, w) + w[:, :1],
    "bmm": lambda x, w: batched(x, w).transpose(0, 1),
    "linear": lambda x, w: F.linear(x, w.mT.flatten(0, 1)).unflatten(-1, (HEADS, -1)).transpose(1, 2),
    "nothing shows": lambda x, w: torch.einsum("bsc,hcd->bhsd", x, w).exp().log(),
}


class Layer(nn.Module):
    """Attention without RoPE, over a cache of the axes that `project` gives, which makes V."""

    def __init__(self, project: Project, heads_first: bool) -> None:
        super().__init__()
        self.project, self.heads_first = project, heads_first
        for name in "qkv":
            setattr(self, name, nn.Parameter(torch.randn(HEADS, HEADS * HEAD_DIM, HEAD_DIM) / 7, requires_grad=False))

    def forward(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, start: int) -> Tensor:
        known = HEADS_FIRST["einsum"] if self.heads_first else BATCH_FIRST["einsum"]
        q, k, v = known(x, self.q), known(x, self.k), self.project(x, self.v)
        end = start + x.shape[1]
        k_cache[:, :, start:end] = k
        v_cache[:, :, start:end] = v
        return F.scaled_dot_product_attention(q, k_cache[:, :, :end], v_cache[:, :, :end])


def codes(project: Project, batch: int, heads_first: bool) -> list[str]:
    """What is refused in one pass of a layer."""
    recorder = Recorder()
    x, start = next(inputs(1, batch))
    lead = (HEADS, batch) if heads_first else (batch, HEADS)
    caches = [torch.zeros(*lead, 6 * TOKENS, HEAD_DIM) for _ in range(2)]
    with torch.no_grad():
        torch.compile(Layer(project, heads_first), backend=recorder, fullgraph=True)(x, *caches, start)
    return recorder.codes


@pytest.mark.parametrize("batch", [1, 2, HEADS])
@pytest.mark.parametrize("name", HEADS_FIRST)
def test_heads_in_front_of_the_batch_are_refused(name: str, batch: int) -> None:
    assert codes(HEADS_FIRST[name], batch, heads_first=True) == ["HF-LAYOUT"]


@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_decide_where_nothing_shows(batch: int) -> None:
    assert codes(lambda x, w: HEADS_FIRST["einsum"](x, w).exp().log(), batch, heads_first=True) == ["HF-LAYOUT"]


@pytest.mark.parametrize("batch", [1, 2, HEADS])
@pytest.mark.parametrize("name", BATCH_FIRST)
def test_the_batch_in_front_is_found(name: str, batch: int) -> None:
    assert codes(BATCH_FIRST[name], batch, heads_first=False) == []
