"""Families that prepare refuses by name, and what a bare compile says about a model that ought to be prepared."""

import pytest
import torch
from torch import nn

import headforce
from headforce import HeadforceError
from headforce.kvpass.capture import find_adapter
from headforce.policy import Policy, parse_rule
from headforce.testing import zoo


class CountedFromFirstRow(nn.Module):
    """Self-attention of Infinite-Forcing as far as it is told apart from Self-Forcing's."""

    def forward(self, x, grid_sizes):
        grid_sizes_kv = grid_sizes.clone()
        return x, grid_sizes_kv


class OfForcingKV(nn.Module):
    """Self-attention of the published systems, as far as each is told apart from Self-Forcing's."""

    def forward(self, x, kv_cache):
        temporal_heads = kv_cache["headgroup_mid"]
        return x, temporal_heads


class OfDummyForcing(nn.Module):
    def forward(self, x, kv_cache):
        headgroup_first = kv_cache["headgroup_first"]
        return x, headgroup_first


class OfDeepForcing(nn.Module):
    def forward(self, x, current_start):
        desired_sink_abs_start = current_start
        return x, desired_sink_abs_start


class OfPyramidForcing(nn.Module):
    def forward(self, x, prompt_v=None):
        return x, prompt_v


def model_with(kind: type[nn.Module] = nn.Module, **attributes: object) -> nn.Module:
    """A model whose self-attention has what adapters look for."""
    attention, block, model = kind(), nn.Module(), nn.Module()
    for name, value in attributes.items():
        setattr(attention, name, value)
    block.self_attn, model.blocks = attention, nn.ModuleList([block])
    model._forward_inference = lambda *_: None
    return model


class Pipeline:
    def __init__(self, model: nn.Module) -> None:
        self.generator = model


WINDOW = {"max_attention_size": 1, "sink_size": 1}


@pytest.mark.parametrize(
    ("attributes", "family"),
    [
        ({"block_length": 72, "frame_length": 24, "max_attention_size": 1}, "HF-CLOCK.*Rolling Forcing"),
        ({"compression_alpha": 0.999, **WINDOW}, "HF-CLOCK.*Reward Forcing"),
        ({"evict_idx": None, "adapt_sink_thr": -1, "sink_size": 3}, "HF-CACHE-FORM.*StreamDiffusionV2"),
        ({"kind": CountedFromFirstRow, **WINDOW}, "HF-CLOCK.*Infinite-Forcing"),
        ({"kind": OfForcingKV, **WINDOW}, "HF-CACHE-FORM.*Forcing-KV.*policy='forcing_kv'"),
        ({"kind": OfForcingKV, "fuse_projections": None, **WINDOW}, "HF-CACHE-FORM.*Forcing-KV"),
        ({"kind": OfDummyForcing, **WINDOW}, "HF-CACHE-FORM.*Dummy Forcing.*policy='dummy_forcing'"),
        ({"kind": OfDeepForcing, **WINDOW}, "HF-CACHE-FORM.*Deep Forcing.*policy='deep_forcing'"),
        ({"kind": OfPyramidForcing, **WINDOW}, "HF-CACHE-FORM.*Pyramid Forcing.*policy='pyramid_forcing'"),
    ],
)
@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_family_is_refused_by_name(attributes, family, mode):
    model = model_with(**attributes)
    for target in (model, Pipeline(model)):
        with pytest.raises(HeadforceError, match=family):
            headforce.prepare(target, Policy({}), mode=mode)
    with pytest.raises(HeadforceError, match=family):
        find_adapter(model)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        (WINDOW, "self-forcing"),
        ({**WINDOW, "fuse_projections": None}, "krea"),
        ({**WINDOW, "global_sink_size": 0}, "longlive-2"),
    ],
)
def test_a_family_that_looks_like_another_is_told_apart(attributes, name):
    assert find_adapter(model_with(**attributes)).name == name


class Calls(nn.Module):
    """A model of LongLive 2 as far as its calls go."""

    def __init__(self, relative: bool = False) -> None:
        super().__init__()
        self.blocks = model_with(**WINDOW, global_sink_size=0).blocks
        self.use_relative_rope = relative

    def _forward_inference(self, x, kv_cache=None):
        raise NotImplementedError


@pytest.mark.parametrize(("relative", "quantized", "code"), [(True, False, "HF-CLOCK"), (False, True, "HF-CACHE-FORM")])
def test_settings_that_are_not_taken_are_refused_when_a_pass_has_them(relative, quantized, code):
    model = Calls(relative)
    cache = {"k": torch.zeros(1), "v": torch.zeros(1), "quantized": quantized}
    with pytest.raises(HeadforceError) as raised:
        find_adapter(model).caches(model, (torch.zeros(1), [cache]), {})
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("read", "held", "sink", "rule"),
    [(6, 6, 2, "sink(2) | span(4)"), (4, 6, 1, "sink(1) | span(3)"), (6, 6, 0, "span(6)"), (4, 6, 0, "span(4)")],
)
def test_a_sink_is_read_in_front_of_a_window_that_left_it_behind(read, held, sink, rule):
    model = Calls()
    attention = model.blocks[0].self_attn
    attention.max_attention_size, attention.sink_size = read * 24, sink
    assert find_adapter(model).native(model, held * 24, 24) == parse_rule(rule)


def broken(k, v, cache, start):
    """A graph ends between the write and the attention."""
    n = k.shape[1]
    cache["k"][:, start : start + n] = k
    cache["v"][:, start : start + n] = v
    torch._dynamo.graph_break()
    return cache["k"][:, : start + n], cache["v"][:, : start + n]


def test_a_refusal_of_a_model_that_was_not_prepared_names_prepare():
    layer = zoo.SelfAttention(protocol=broken)
    compiled = torch.compile(layer, backend="headforce", options={"inner": "eager", "policy": Policy({})})
    x, start = next(zoo.inputs(1))
    with torch.no_grad(), pytest.raises(HeadforceError, match=r"headforce\.prepare") as raised:
        compiled(x, layer.new_cache(), start)
    assert raised.value.code in ("HF-CACHE-UNREAD", "HF-OPAQUE")
