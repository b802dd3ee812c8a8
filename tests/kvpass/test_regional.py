"""Regional compilation: blocks compiled one by one and broken graphs stay right layer by layer, and share graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import headforce
from headforce import HeadforceError
from headforce.policy import Policy

from .conftest import videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative
from .test_owned_policy import TOLERANCE

EAGER = {"inner": "eager"}
LAYERS = 3
LENGTHS = ([3] * 4,)
PASSES = 4 * 3
# What a layer or a head reads is read by no other, so that nothing can be exchanged unseen. The tiny model itself holds
# frame 0 and the newest two, which view mode is limited to.
POLICY = Policy.loads("""
    headforce: 0
    classes: {none: drop(), last: window(1), sink: sink(1), both: sink(1) | window(1), all: sink(1) | window(2)}
    default: all
    heads: {0: {none: [0], last: [1], sink: [2], both: [3]}, 1: {sink: [0, 1], none: [2]}, 2: {both: [0], last: [2, 3]}}
    """)


def by_block(model: nn.Module) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="headforce", options=EAGER)
    return model


def repeated_blocks(model: nn.Module) -> nn.Module:
    """As diffusers does it, with its own function."""
    mixin = pytest.importorskip("diffusers", reason="needs the extra diffusers").ModelMixin
    model._repeated_blocks = ["Block"]
    mixin.compile_repeated_blocks(model, backend="headforce", options=EAGER)
    return model


def broken(model: nn.Module) -> nn.Module:
    """Graphs end between blocks and inside them, before and after the attention call."""
    for block in model.blocks:
        for part in (block.norm1, block.self_attn.o, block.ffn, block):
            part.register_forward_hook(graph_break)
    return torch.compile(model, backend="headforce", options=EAGER)


def graph_break(*_: object) -> None:
    torch._dynamo.graph_break()


@pytest.fixture(scope="module")
def expected() -> list[torch.Tensor]:
    model = wan(sink_size=1, num_layers=LAYERS)
    return videos(oracle_model(model, POLICY), model.config, LENGTHS)


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        pytest.param(repeated_blocks, "owned", marks=pytest.mark.slow),
        (by_block, "view"),
        pytest.param(broken, "owned", marks=pytest.mark.slow),
        pytest.param(broken, "view", marks=pytest.mark.slow),
    ],
)
def test_every_layer_follows_its_own_rules_in_shared_graphs(
    form: Callable[[nn.Module], nn.Module], mode: str, expected: list[torch.Tensor]
) -> None:
    model = wan(sink_size=1, num_layers=LAYERS)
    with headforce.prepare(model, policy=POLICY, mode=mode, verify="plan") as session:
        result = videos(form(model), model.config, LENGTHS)
        assert session.launches == [PASSES] * LAYERS
        assert session.misses == 0
        # One site in each graph, and no more graphs than the model has states: filling (three), evicting, full.
        assert session.report.count("rewritten") == session.report.graphs <= 5
        assert session.report.count("refused") == 0
    assert bool(torch._dynamo.utils.counters["graph_break"]) == (form is broken)
    for ours, theirs in zip(result, expected, strict=True):
        assert relative(ours, theirs) < TOLERANCE


def test_the_tolerance_would_show_two_heads_exchanged(expected: list[torch.Tensor]) -> None:
    """Or two layers: the oracle with one head's rule in the place of another's differs by far more."""
    model = wan(sink_size=1, num_layers=LAYERS)
    rows = [[POLICY.rule_of(layer, head) for head in range(4)] for layer in range(LAYERS)]
    assert len({tuple(map(str, row)) for row in rows}) == LAYERS
    exchanged = oracle_model(model, POLICY)
    exchanged.blocks[1].self_attn.layer, exchanged.blocks[2].self_attn.layer = 2, 1
    for ours, theirs in zip(videos(exchanged, model.config, LENGTHS), expected, strict=True):
        assert relative(ours, theirs) > 10 * TOLERANCE


def test_a_break_between_the_rope_table_and_the_attention_is_refused() -> None:
    """The graph with the attention call then has the angles of this chunk as an input, and no clock."""
    model = wan(sink_size=1)
    for block in model.blocks:
        block.self_attn.norm_q.register_forward_hook(graph_break)
    with headforce.prepare(model, policy=Policy({})):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        with pytest.raises(HeadforceError, match="HF-CLOCK"):
            videos(compiled, model.config, ([3],))
