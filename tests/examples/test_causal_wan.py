"""The model: its parameters, its position embedding, its weights and the shapes it takes."""

import ast
import dataclasses
import doctest
import importlib
import math
import pkgutil
import re
import sys
from pathlib import Path

import pytest
import torch

import examples.causal_wan as causal_wan
from examples.causal_wan import (
    DEMO,
    TINY,
    WAN_1_3B,
    WAN_14B,
    CausalWan,
    Rollout,
    WanConfig,
    allocate_crossattn_cache,
    allocate_kv_cache,
    init_random,
    rope_angles,
    rope_table,
    rotate,
)
from examples.causal_wan.rope import axis_pairs

MODULES = [f"{causal_wan.__name__}.{module.name}" for module in pkgutil.iter_modules(causal_wan.__path__)]


def text(config, batch=1, seed=0):
    return torch.randn(batch, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(seed))


def forward(model, x, context, t=500.0):
    """The first forward of a video, with caches of its own."""
    caches = [
        allocate(model.config, x.shape[0], x.dtype, x.device)
        for allocate in (allocate_kv_cache, allocate_crossattn_cache)
    ]
    with torch.no_grad():
        return model(x, torch.full((x.shape[0], x.shape[2]), t), context, *caches)


# The published layout -------------------------------------------------------------------------------------------------


def published_layout(dim, layers, ffn, text_dim=4096, freq_dim=256, channels=16):
    """Names and shapes in a Self-Forcing checkpoint, in order."""

    def linear(name, inputs, outputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def attention(name):
        projections = {}
        for part in "qkvo":
            projections |= linear(f"{name}.{part}", dim, dim)
        return projections | {f"{name}.norm_q.weight": (dim,), f"{name}.norm_k.weight": (dim,)}

    layout = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}
    layout |= linear("text_embedding.0", text_dim, dim) | linear("text_embedding.2", dim, dim)
    layout |= linear("time_embedding.0", freq_dim, dim) | linear("time_embedding.2", dim, dim)
    layout |= linear("time_projection.1", dim, 6 * dim)
    for i in range(layers):
        block = f"blocks.{i}"
        layout |= {f"{block}.modulation": (1, 6, dim)} | attention(f"{block}.self_attn")
        layout |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)} | attention(f"{block}.cross_attn")
        layout |= linear(f"{block}.ffn.0", dim, ffn) | linear(f"{block}.ffn.2", ffn, dim)
    return layout | {"head.modulation": (1, 2, dim)} | linear("head.head", dim, 4 * channels)


@pytest.mark.parametrize(
    ("config", "layout", "names", "parameters"),
    [
        (WAN_1_3B, published_layout(1536, 30, 8960), 825, 1_418_996_800),
        (WAN_14B, published_layout(5120, 40, 13824), 1095, 14_288_491_584),
    ],
    ids=["1.3B", "14B"],
)
def test_parameters_have_the_published_names_and_shapes(config, layout, names, parameters):
    with torch.device("meta"):
        state = CausalWan(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == layout
    assert len(state) == names
    assert sum(tensor.numel() for tensor in state.values()) == parameters


def test_presets_have_the_published_geometry():
    assert (WAN_1_3B.num_heads, WAN_1_3B.head_dim, WAN_1_3B.tokens_per_frame, WAN_1_3B.cache_frames) == (
        12,
        128,
        1560,
        21,
    )
    assert (WAN_14B.num_heads, WAN_14B.head_dim, WAN_14B.tokens_per_frame) == (40, 128, 1560)
    assert (DEMO.num_layers, DEMO.num_heads, DEMO.head_dim, DEMO.grid, DEMO.tokens_per_frame, DEMO.local_attn_size) == (
        8, 12, 64, (12, 20), 240, 21,
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 5},
        {"num_heads": 48},
        {"latent_height": 7},
        {"patch_size": (2, 2, 2)},
        {"local_attn_size": 0},
        {"sink_size": 6},
        {"freq_dim": 63},
    ],
    ids=lambda change: next(iter(change)),
)
def test_sizes_that_contradict_each_other_are_refused(change):
    with pytest.raises(ValueError, match=r"\d"):
        dataclasses.replace(TINY, **change)


# Position embedding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [128, 64, 24])
@pytest.mark.parametrize("start", [0, 1, 500, 1021])
def test_rotation_equals_complex_multiplication_in_float64(head_dim, start):
    frames, rows, columns = 3, 4, 5
    x = torch.randn(2, 60, 3, head_dim, generator=torch.Generator().manual_seed(start))

    frame, row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in (frames, rows, columns)), indexing="ij"
    )
    angle = [
        where.reshape(-1, 1) * 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        for where, pairs in zip((frame + start, row, column), axis_pairs(head_dim), strict=True)
    ]
    turn = torch.polar(torch.ones(60, head_dim // 2, dtype=torch.float64), torch.cat(angle, dim=1)).unsqueeze(1)
    expected = torch.view_as_real(torch.view_as_complex(x.double().reshape(2, 60, 3, -1, 2)) * turn).flatten(-2)

    result = rotate(x, *rope_angles(rope_table(head_dim), start, (frames, rows, columns)))
    assert result.dtype == x.dtype
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=0)


def test_positions_past_the_table_are_refused():
    table = rope_table(24, positions=8)
    rope_angles(table, 5, (3, 4, 6))
    for start, grid in [(6, (3, 4, 6)), (0, (1, 9, 6)), (0, (1, 4, 9))]:
        with pytest.raises(ValueError, match="table has 8 positions"):
            rope_angles(table, start, grid)


def test_the_table_keeps_its_precision_when_the_model_changes_dtype_or_leaves_the_meta_device():
    expected = rope_table(TINY.head_dim, TINY.rope_positions)
    assert torch.equal(CausalWan(TINY).bfloat16().rope.table, expected)
    with torch.device("meta"):
        model = CausalWan(TINY)
    assert torch.equal(model.to_empty(device="cpu").rope.table, expected)
    assert not [name for name in model.state_dict() if name.startswith("rope")]


# Forward --------------------------------------------------------------------------------------------------------------


def test_a_batch_is_its_rows_side_by_side():
    model, context = init_random(CausalWan(TINY), seed=1), text(TINY, batch=2)
    x = torch.randn(2, TINY.channels, 3, 8, 12)
    both = forward(model, x, context)
    assert both.shape == x.shape
    for row in range(2):
        alone = forward(model, x[row : row + 1], context[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_bfloat16_follows_float32():
    model, context = init_random(CausalWan(TINY), seed=1), text(TINY)
    x = torch.randn(1, TINY.channels, 3, 8, 12)
    expected = forward(model, x, context)
    result = forward(model.bfloat16(), x.bfloat16(), context.bfloat16())
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).std() < 0.03 * expected.std()


def test_each_frame_follows_its_own_timestep_and_chunks_start_on_frames():
    config = dataclasses.replace(TINY, num_layers=1)
    model, context = init_random(CausalWan(config), seed=1), text(config)
    x, t = torch.randn(1, config.channels, 2, 8, 12), torch.tensor([[1000.0, 625.0]])
    kv, cross = allocate_kv_cache(config), allocate_crossattn_cache(config)
    with torch.no_grad():
        mixed = model(x, t, context, kv, cross)
        same = model(x, torch.full_like(t, 1000.0), context, kv, cross)
        assert not torch.allclose(mixed[:, :, 1], same[:, :, 1], atol=0.1)
        with pytest.raises(ValueError, match="first of a frame"):
            model(x, t, context, kv, cross, current_start=7)


def test_the_text_is_read_once_for_each_prompt():
    model = init_random(CausalWan(TINY), seed=1)
    x, t = torch.randn(1, TINY.channels, 3, 8, 12), torch.full((1, 3), 500.0)
    kv, cross = allocate_kv_cache(TINY), allocate_crossattn_cache(TINY)
    with torch.no_grad():
        first = model(x, t, text(TINY), kv, cross)
        assert torch.equal(model(x, t, text(TINY, seed=9), kv, cross), first)
        cross[1]["is_init"] = False
        assert not torch.equal(model(x, t, text(TINY, seed=9), kv, cross), first)


def fill(tensor, salt):
    """Numbers between -1 and 1 that look random but hang on no generator."""
    k = torch.arange(tensor.numel(), dtype=torch.float64) + 1000 * salt
    return 2 * torch.frac(torch.sin(k) * 43758.5453).abs().view(tensor.shape).float() - 1


@torch.no_grad()
def test_the_flow_is_the_published_one():
    """These numbers were taken when the rollouts of test_causal_wan_upstream agreed; they need no checkout."""
    config = dataclasses.replace(TINY, local_attn_size=3, sink_size=1)
    model = CausalWan(config)
    for salt, (name, parameter) in enumerate(model.named_parameters()):
        values = fill(parameter, salt)
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")):
            parameter.copy_(1 + values / 2)
        else:
            parameter.copy_(values * (0.3 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5))
    context = fill(torch.empty(1, config.text_len, config.text_dim), 101)
    kv, cross = allocate_kv_cache(config), allocate_crossattn_cache(config)
    for start in (0, 2):
        x, t = fill(torch.empty(1, config.channels, 2, 8, 12), 102 + start), torch.tensor([[900.0, 300.0]])
        flow = model(x, t, context, kv, cross, start * config.tokens_per_frame)
    channel, frame, row, column = [0, 1, 2, 3] * 2, [0] * 4 + [1] * 4, range(8), [0, 3, 5, 6, 7, 8, 10, 11]
    expected = [2.0541, 0.6126, -0.4884, -3.2547, -1.5724, 0.0965, 0.8435, 0.4591]
    torch.testing.assert_close(flow[0, channel, frame, list(row), column], torch.tensor(expected), atol=1e-3, rtol=0)


# Random weights -------------------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_and_give_flows_of_unit_scale():
    model = init_random(CausalWan(TINY), seed=3)
    again, other = init_random(CausalWan(TINY), seed=3), init_random(CausalWan(TINY), seed=4)
    for (name, a), b, c in zip(model.state_dict().items(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c), name
    flow = forward(model, torch.randn(1, TINY.channels, 3, 8, 12), text(TINY))
    assert 0.5 < flow.std() < 2


@pytest.mark.parametrize(
    "config",
    [TINY, dataclasses.replace(TINY, num_layers=24, latent_height=16), dataclasses.replace(DEMO, num_layers=2)],
    ids=["tiny", "deep", "demo"],
)
@pytest.mark.parametrize("peaked", [False, True], ids=["flat", "peaked"])
def test_entropy_of_self_attention(config, peaked, monkeypatch):
    """Mean entropy over the logarithm of the number of keys: above 0.8 by default, below one half when peaked."""
    ratios = []
    attend = causal_wan.attention.attend

    def measured(q, k, v):
        if k.shape[1] != config.text_len:
            logits = torch.einsum("blhd,bshd->bhls", q[:, ::16], k) / math.sqrt(q.shape[-1])
            entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
            ratios.append((entropy.mean() / math.log(k.shape[1])).item())
        return attend(q, k, v)

    monkeypatch.setattr(causal_wan.attention, "attend", measured)
    model = init_random(CausalWan(config), seed=2, peaked=peaked)
    Rollout(model, timesteps=(1000.0,)).generate(text(config), chunks=[2, 2])
    assert len(ratios) == 4 * config.num_layers
    if peaked:
        assert sum(ratios) / len(ratios) < 0.4
        assert max(ratios) < 0.5
    else:
        assert min(ratios) > 0.8


# The package ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [causal_wan.__name__, *MODULES])
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_example_needs_torch_and_safetensors_alone():
    imported = set()
    for path in Path(causal_wan.__file__).parent.glob("*.py"):
        source = path.read_text()
        assert not re.search("headforce", source, re.IGNORECASE), path.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}


def test_configs_are_values():
    assert dataclasses.replace(TINY) == TINY
    assert isinstance(hash(TINY), int)
    assert isinstance(TINY, WanConfig)
