"""Owned mode under `native()`: the compiled model is the model."""

from __future__ import annotations

import pytest
import torch

import headforce
from headforce.policy import Policy

from .conftest import videos, wan

NATIVE = Policy({})
FILL_EVICT_RESTART = ([3] * 5, [3] * 3)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("sink", "batch"), [(0, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_bitwise_in_canonical_order(sink: int, batch: int) -> None:
    model = wan(sink_size=sink, num_layers=2)
    eager = videos(model, model.config, FILL_EVICT_RESTART, batch)
    with headforce.prepare(model, policy=NATIVE, canonical_order=True, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"}, fullgraph=True)
        for ours, theirs in zip(videos(compiled, model.config, FILL_EVICT_RESTART, batch), eager, strict=True):
            assert torch.equal(ours, theirs)
        assert session.launches == [8 * 3] * 2
        assert session.report.count("rewritten") == 2 * session.report.graphs
        assert session.report.count("refused") == 0


@pytest.mark.slow
def test_native_without_canonical_order_is_within_rounding() -> None:
    model = wan(sink_size=1)
    eager = videos(model, model.config, FILL_EVICT_RESTART)
    with headforce.prepare(model, policy=NATIVE):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        for ours, theirs in zip(videos(compiled, model.config, FILL_EVICT_RESTART), eager, strict=True):
            assert relative(ours, theirs) < 1e-5


@pytest.mark.slow
def test_bfloat16_is_bitwise_in_canonical_order() -> None:
    model = wan(dtype=torch.bfloat16)
    eager = videos(model, model.config, FILL_EVICT_RESTART, dtype=torch.bfloat16)
    with headforce.prepare(model, policy=NATIVE, canonical_order=True):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        for ours, theirs in zip(
            videos(compiled, model.config, FILL_EVICT_RESTART, dtype=torch.bfloat16), eager, strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_inductor_is_within_rounding() -> None:
    model = wan(sink_size=1)
    eager = videos(model, model.config, FILL_EVICT_RESTART)
    with headforce.prepare(model, policy=NATIVE) as session:
        compiled = torch.compile(model, backend="headforce", fullgraph=True)
        for ours, theirs in zip(videos(compiled, model.config, FILL_EVICT_RESTART), eager, strict=True):
            assert relative(ours, theirs) < 1e-5
        assert session.report.graphs <= 5


@pytest.mark.slow
def test_irregular_chunks() -> None:
    model = wan(sink_size=1)
    lengths = ([1, 3, 3, 2], [2, 2])
    eager = videos(model, model.config, lengths)
    with headforce.prepare(model, policy=NATIVE, canonical_order=True, verify="plan"):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        for ours, theirs in zip(videos(compiled, model.config, lengths), eager, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_the_model_without_a_policy_runs_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    model = wan()
    eager = videos(model, model.config, ([3] * 3,))
    compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
    assert torch.equal(videos(compiled, model.config, ([3] * 3,))[0], eager[0])


def test_mode_alone_is_accepted() -> None:
    compiled = torch.compile(torch.nn.Linear(4, 4), backend="headforce", mode="max-autotune-no-cudagraphs")
    with torch.no_grad():
        assert compiled(torch.ones(2, 4)).shape == (2, 4)
