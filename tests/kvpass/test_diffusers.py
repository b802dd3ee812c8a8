"""Models of diffusers, tiny and random: those that hold no history of a known form are left alone, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headforce
from headforce import HeadforceError
from headforce.kvpass.backend import UNPREPARED
from headforce.policy import Policy

from ..upstream import anyflow_far

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")

NATIVE = Policy({})
CHUNKS = (1, 2)
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def wan() -> tuple[nn.Module, dict[str, Any]]:
    """Bidirectional: a pass is a whole video."""
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(**TINY).eval(), _call()


def skyreels_v2(layers: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    """Diffusion forcing: the past lies in the sequence of the pass, behind a block-causal mask."""
    torch.manual_seed(0)
    model = diffusers.SkyReelsV2Transformer3DModel(**{**TINY, "num_layers": layers}, num_frame_per_block=2).eval()
    timestep = torch.tensor([[0, 0, 700, 700]])
    return model, {**_call(), "timestep": timestep, "enable_diffusion_forcing": True}


def helios() -> tuple[nn.Module, dict[str, Any]]:
    """The past is sent along as latents of three scales, and a learned factor for each head makes its keys louder."""
    torch.manual_seed(0)
    model = diffusers.HeliosTransformer3DModel(**TINY, rope_dim=(8, 8, 8), is_amplify_history=True).eval()
    history: dict[str, Any] = {"indices_hidden_states": torch.arange(20, 24)[None]}
    for name, first, frames in (("short", 18, 2), ("mid", 16, 2), ("long", 0, 16)):
        history[f"indices_latents_history_{name}"] = torch.arange(first, first + frames)[None]
        history[f"latents_history_{name}"] = randn(1, 4, frames, 8, 8)
    return model, {**_call(), **history}


def _call() -> dict[str, Any]:
    text = randn(1, 8, 16)
    return {"hidden_states": randn(1, 4, 4, 8, 8), "timestep": torch.tensor([500]), "encoder_hidden_states": text}


@pytest.mark.slow
@pytest.mark.parametrize("make", [wan, skyreels_v2, helios])
def test_a_model_without_a_cache_is_left_alone_with_a_reason(make: Any) -> None:
    model, call = make()
    eager = model(**call)[0]
    seen = headforce.explain(model, **call)
    assert (seen.graphs, seen.breaks) == (1, ())
    assert [(site.verdict, site.code, site.name) for site in seen.sites] == [
        ("refused", "HF-NOHISTORY", "blocks.0.attn1"),
        ("excluded", "HF-CROSS", "blocks.0.attn2"),
    ]
    # The model's own file, not that of the dispatcher through which all attention of diffusers goes.
    assert all(f"transformer_{make.__name__}" in site.where for site in seen.sites)

    def compiled(**options: Any) -> Any:
        return torch.compile(model, backend="headforce", options={"inner": "eager", "policy": NATIVE, **options})

    with pytest.raises(HeadforceError, match="HF-NOHISTORY"):
        compiled()(**call)
    assert torch.equal(compiled(on_refuse="warn")(**call)[0], eager)
    with pytest.raises(HeadforceError, match="HF-ADAPTER"):
        headforce.prepare(model, policy=NATIVE)


def test_repeated_blocks_do_not_show_where_their_mask_comes_from() -> None:
    model, call = skyreels_v2(layers=2)
    eager = model(**call)[0]
    model.compile_repeated_blocks(backend="headforce", options={"inner": "eager", "policy": NATIVE})
    with pytest.raises(HeadforceError, match="HF-MASK"):
        model(**call)
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="headforce", options={"inner": "eager"})
    assert torch.equal(model(**call)[0], eager)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one before, one now, for both blocks


def test_attention_backends_are_a_closed_list() -> None:
    """Why there is no set_attention_backend("headforce"), see docs/decisions.md. Should this fail, there can be one."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    model, _ = wan()
    with pytest.raises(ValueError, match="must be one of the following"):
        model.set_attention_backend("headforce")
    with pytest.raises(TypeError, match="extend"):

        class More(AttentionBackendName):
            HEADFORCE = "headforce"

    # And a backend would be asked with the operands alone: no cache, no layer, no clock.
    assert not {"cache", "kv_cache", "layer", "module"} & set(inspect.signature(dispatch_attention_fn).parameters)


# --- AnyFlow-FAR, which has a cache ------------------------------------------------------------------------------


@pytest.mark.slow
def test_anyflow_far_is_refused_by_name_and_runs_as_it_is() -> None:
    """Its past lies in two tensors, at two resolutions; its cache is written under a block mask made outside."""
    model = anyflow_far.make(layers=1)
    eager = anyflow_far.Video(model, CHUNKS).run()
    torch._dynamo.reset()
    model.compile_repeated_blocks(
        backend="headforce", options={"inner": "eager", "policy": NATIVE, "on_refuse": "warn"}
    )
    UNPREPARED.sites.clear()
    ours = anyflow_far.Video(model, CHUNKS).run()
    assert torch.equal(ours.latents, eager.latents)
    for layer, cache in eager.caches.items():
        assert all(torch.equal(ours.caches[layer][name], cache[name]) for name in cache)
    reasons = {line.reason for line in UNPREPARED.sites if line.verdict == "refused"}
    assert {reason[:15] for reason in reasons} == {"[HF-CACHE-PARTS", "[HF-MASK] found"}
    joined = next(reason for reason in reasons if "CACHE-PARTS" in reason)
    assert "L['kv_cache']['compressed_cache'] and L['kv_cache']['full_cache']" in joined
    assert not any(line.verdict == "rewritten" for line in UNPREPARED.sites)
    with pytest.raises(HeadforceError, match=r"HF-CACHE-PARTS.*AnyFlow-FAR"):
        headforce.prepare(model, policy=NATIVE)


@pytest.mark.parametrize(("writing", "code"), [(False, "HF-CACHE-PARTS"), (True, "HF-MASK")])
def test_anyflow_far_under_a_policy_is_an_error_and_explained(writing: bool, code: str) -> None:
    model = anyflow_far.make(layers=1)
    video = anyflow_far.Video(model, CHUNKS)
    call = video.writing(0) if writing else video.noisy(0, 0)[1]
    seen = headforce.explain(model, **call)
    assert (seen.family, seen.graphs, seen.breaks) == (None, 1, ())
    assert [(site.verdict, site.code) for site in seen.sites] == [("refused", code), ("excluded", "HF-CROSS")]
    compiled = torch.compile(model, backend="headforce", options={"inner": "eager", "policy": NATIVE})
    with pytest.raises(HeadforceError, match=code):
        compiled(**call)
