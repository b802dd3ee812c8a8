"""Linear layers in float8 around a site: the site is rewritten, and they stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import ScalingType

import headforce
from headforce.policy import Policy

from .conftest import videos, wan

LENGTHS = ([3] * 3,)  # the third chunk evicts
LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Float8Linear(nn.Module):
    """A linear layer whose weight is stored, and multiplied, in float8; its input is rounded on the way."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantized(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantized(x.flatten(0, -2))
        wise = ScalingType.TensorWise
        y = F.scaled_mm(rows, self.weight.t(), scale, wise, self.scale, wise, output_dtype=x.dtype)
        return y.unflatten(0, x.shape[:-1]) + self.bias


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax().float() / LARGEST
    return (x / scale).to(torch.float8_e4m3fn), scale


@pytest.mark.slow
def test_float8_linears_around_a_rewritten_site() -> None:
    model = wan(sink_size=1)
    for block in model.blocks:
        for owner in (block.self_attn, block.cross_attn):
            for name in ("q", "k", "v", "o"):
                setattr(owner, name, Float8Linear(getattr(owner, name)))
        block.ffn[0], block.ffn[2] = map(Float8Linear, (block.ffn[0], block.ffn[2]))
    eager = videos(model, model.config, LENGTHS)
    counts: list[dict[str, int]] = []

    def counting(module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        targets = [str(node.target) for node in module.graph.nodes]
        counts.append({word: sum(word in t for t in targets) for word in ("scaled_mm", "ragged_attention", "linear")})
        return module.forward

    torch._dynamo.register_backend(counting, name="headforce_test_counting")
    with headforce.prepare(model, policy=Policy({}), canonical_order=True) as session:
        compiled = torch.compile(
            model, backend="headforce", options={"inner": "headforce_test_counting"}, fullgraph=True
        )
        result = videos(compiled, model.config, LENGTHS)
        assert session.launches == [3 * 3]
        assert session.report.count("rewritten") == session.report.graphs
    assert torch.equal(result[0], eager[0])
    assert all(block.self_attn.q.weight.dtype == torch.float8_e4m3fn for block in model.blocks)
    for count in counts:
        assert count["ragged_attention"] == 1
        # Keys and values of the text are made once, in the first pass.
        assert count["scaled_mm"] == (10 if count is counts[0] else 8)
