"""The model against the published implementation, where a checkout of Self-Forcing is at hand.

Name its folder in HEADFORCE_SELF_FORCING to run these tests: github.com/guandeh17/Self-Forcing.
"""

import dataclasses
import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.causal_wan import PRESETS, TINY, CausalWan, Rollout, init_random

CHECKOUT = os.environ.get("HEADFORCE_SELF_FORCING")
pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="HEADFORCE_SELF_FORCING does not name a checkout of github.com/guandeh17/Self-Forcing"
)


def attention(q, k, v, **_):
    """In place of theirs, which needs flash-attn or rounds to bfloat16."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.fixture
def upstream(monkeypatch):
    """Their causal model module, with stand-ins for the packages that it only names."""

    def package(name, *path, **content):
        module = types.ModuleType(name)
        module.__path__ = [str(part) for part in path]
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)

    package("einops", repeat=None)
    package("diffusers")
    package("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda init: init)
    package("diffusers.models")
    package("diffusers.models.modeling_utils", ModelMixin=torch.nn.Module)
    package("wan", Path(CHECKOUT) / "wan")
    package("wan.modules", Path(CHECKOUT) / "wan" / "modules")
    names = ["wan.modules.attention", "wan.modules.model", "wan.modules.causal_model"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("wan.modules.causal_model")
    monkeypatch.setattr(module, "attention", attention)
    monkeypatch.setattr(sys.modules["wan.modules.model"], "flash_attention", attention)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def build(upstream, config):
    model = upstream.CausalWanModel(
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        in_dim=config.channels,
        out_dim=config.channels,
        freq_dim=config.freq_dim,
        text_dim=config.text_dim,
        text_len=config.text_len,
        local_attn_size=config.local_attn_size,
        sink_size=config.sink_size,
    )
    for block in model.blocks:  # they fix 1560 tokens in a frame
        block.self_attn.max_attention_size = config.cache_frames * config.tokens_per_frame
    return model


class Theirs:
    """Their model under our signature, with caches of its own in which the indices are tensors."""

    def __init__(self, model, config):
        self.model = model
        shape = (1, config.cache_frames * config.tokens_per_frame, config.num_heads, config.head_dim)
        self.kv, self.cross = [], []
        for _ in range(config.num_layers):
            ends = {name: torch.tensor([0]) for name in ("global_end_index", "local_end_index")}
            self.kv.append({"k": torch.zeros(shape), "v": torch.zeros(shape), **ends})
            self.cross.append({"k": None, "v": None, "is_init": False})

    def __call__(self, x, t, context, kv_cache, crossattn_cache, current_start):
        caches = {"kv_cache": self.kv, "crossattn_cache": self.cross}
        return self.model(x, t, list(context), 32760, current_start=current_start, **caches)


@pytest.mark.parametrize("name", PRESETS)
def test_names_shapes_and_order_of_the_state_dict(upstream, name):
    with torch.device("meta"):
        ours, theirs = CausalWan(PRESETS[name]), build(upstream, PRESETS[name])
    assert [(n, p.shape) for n, p in ours.state_dict().items()] == [
        (n, p.shape) for n, p in theirs.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("window", "sink", "chunks"),
    [(6, 0, [3] * 5), (6, 1, [3] * 5), (7, 2, [1, 3, 3, 2, 4, 1, 5]), (-1, 0, [3] * 3)],
)
@pytest.mark.parametrize("peaked", [False, True], ids=["flat", "peaked"])
def test_rollouts_agree(upstream, window, sink, chunks, peaked):
    config = dataclasses.replace(TINY, local_attn_size=window, sink_size=sink)
    ours, theirs = init_random(CausalWan(config), seed=0, peaked=peaked), build(upstream, config)
    theirs.load_state_dict(ours.state_dict())
    context = torch.randn(1, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(1))
    result = Rollout(ours).generate(context, chunks)
    expected = Rollout(Theirs(theirs, config), config).generate(context, chunks)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
