"""Casts inside attention that is written out: floating numbers are rounded where the model rounds them, and whatever
else happens to scores and weights is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import headforce  # noqa: F401  registers the backend
from headforce.kvpass.layers import viewed
from headforce.policy import Policy
from headforce.testing import zoo
from headforce.testing.recording import Recorder

from .test_lower import calls, lowered_graph


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bqhd,bkhd->bhqk", q * 0.25, k)


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def whole_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted((scores(q, k) * 4).to(torch.int32).float().softmax(-1), v)


def whole_scores_behind_a_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted((scores(q, k).int().float() + torch.zeros(q.shape[1], k.shape[1])).softmax(-1), v)


def small_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(scores(q, k).to(torch.float8_e4m3fn).to(q.dtype).softmax(-1), v)


def whole_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(scores(q, k).softmax(-1).to(torch.int32).to(v.dtype), v)


def small_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(scores(q, k).softmax(-1).to(torch.float8_e4m3fn).to(v.dtype), v)


def keys_in_front(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of four dims torch takes the second one, here the queries."""
    return torch.einsum("kqbh,bkhd->bqhd", F.softmax(torch.einsum("bqhd,bkhd->kqbh", q, k)), v)


def rounded_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of float32 that are large, so that a rounded query shows, behind them bfloat16."""
    return weighted(scores(q * 10, k * 10).softmax(-1).bfloat16(), v.bfloat16()).float()


def rounded_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return weighted(scores(q, k).bfloat16().float().softmax(-1), v)


@pytest.mark.parametrize(
    ("code", "core"),
    [
        ("HF-SCOREMOD", whole_scores),
        ("HF-SCOREMOD", whole_scores_behind_a_mask),
        ("HF-SCOREMOD", small_scores),
        ("HF-ATTENTION-FORM", whole_weights),
        ("HF-ATTENTION-FORM", small_weights),
        ("HF-ATTENTION-FORM", keys_in_front),
    ],
)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_what_is_no_rounding_is_refused(code: str, core: Callable[..., Tensor]) -> None:
    layer, recorder = zoo.SelfAttention(core=core), Recorder()
    x, start = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(layer, backend=recorder, fullgraph=True)(x, layer.new_cache(), start)
    assert recorder.codes == [code]


@pytest.mark.parametrize(("core", "tolerance"), [(rounded_weights, 2e-3), (rounded_scores, 1e-2)])
def test_only_what_the_model_rounds_is_rounded(core: Callable[..., Tensor], tolerance: float) -> None:
    torch.manual_seed(0)
    viewed.clear()
    layer = zoo.SelfAttention(core=core)
    options = {"policy": Policy({}), "inner": "eager", "verify": "off"}
    compiled = torch.compile(layer, backend="headforce", options=options)
    caches = [layer.new_cache() for _ in range(2)]
    with torch.no_grad():
        for x, start in zoo.inputs(3):  # two passes each
            want, got = layer(x, caches[0], start), compiled(x, caches[1], start)
            assert got.dtype == want.dtype
            assert float((got - want).norm() / want.norm()) < tolerance
    assert [layer.launches for layer in viewed.values()] == [6]
    viewed.clear()


@pytest.mark.parametrize("target", ["sdpa", "triton"])
def test_a_cast_of_the_result_is_added_only_where_it_is_needed(target: str) -> None:
    casts = {}
    for core in (rounded_weights, zoo.written, zoo.sdpa):
        layer = zoo.SelfAttention(core=core)
        x, start = next(zoo.inputs(1))
        module, _ = lowered_graph(layer, (x, layer.new_cache(), start), target)
        casts[core] = calls(module).count(torch.ops.aten.to.dtype)
    assert casts[rounded_weights] - 1 == casts[zoo.written] == casts[zoo.sdpa]
