"""Events of a stream in a compiled model: prefill, recache with another prompt, a cache rebuilt for every block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import headforce
from examples.causal_wan import CausalWan, allocate_crossattn_cache, allocate_kv_cache, reset_caches
from headforce import HeadforceError
from headforce.demo.example import twin
from headforce.kvpass.layers import Layer, PassFacts
from headforce.policy import Policy

from .conftest import text, wan

pytestmark = pytest.mark.shares_graphs

Passes = list[tuple[int, int, int] | str]
"""(first frame, frames, prompt) of every pass, or "reset"."""

EVENTS: dict[str, Passes] = {
    "prefill of a long chunk": [(0, 5, 0), (5, 3, 0), (5, 3, 0), (8, 3, 0), (11, 3, 0)],
    "recache of the last frames with a new prompt": [
        *((start, 3, 0) for start in (0, 3, 6, 9)),
        (6, 6, 1),
        (12, 3, 1),
        (12, 3, 1),
        (15, 3, 1),
    ],
    "one chunk back": [(0, 3, 0), (3, 3, 0), (0, 3, 1), (3, 3, 1), (6, 3, 1), (6, 3, 0), (9, 3, 0)],
    "a cache rebuilt for every block": [
        (0, 3, 0),
        (3, 3, 0),
        "reset",
        (0, 3, 0),
        (3, 3, 0),
        (3, 3, 0),
        "reset",
        (0, 3, 1),
        (3, 3, 1),
    ],
}


def outputs(model: Callable[..., torch.Tensor], config, passes: Passes) -> list[torch.Tensor]:
    """What the model gives for each pass; inputs depend on the place in the list only."""
    kv_cache, crossattn_cache = allocate_kv_cache(config), allocate_crossattn_cache(config)
    prompt, results = 0, []
    for i, step in enumerate(passes):
        if isinstance(step, str):
            reset_caches(kv_cache, crossattn_cache)
            continue
        start, frames, wanted = step
        if wanted != prompt:
            prompt = wanted
            for cache in crossattn_cache:
                cache["is_init"] = False
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(1, config.channels, frames, config.latent_height, config.latent_width, generator=generator)
        with torch.no_grad():
            results.append(
                model(
                    x,
                    torch.full((1, frames), 500.0),
                    text(config, seed=prompt),
                    kv_cache=kv_cache,
                    crossattn_cache=crossattn_cache,
                    current_start=start * config.tokens_per_frame,
                )
            )
    return results


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["owned", "view"])
def test_native_is_bitwise_equal_through(mode: str) -> None:
    model: CausalWan = wan()
    with headforce.prepare(model, policy=Policy({}), mode=mode, canonical_order=True, verify="plan"):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        for name, passes in EVENTS.items():
            eager = outputs(twin(model), model.config, passes)
            for ours, theirs in zip(outputs(compiled, model.config, passes), eager, strict=True):
                assert torch.equal(ours, theirs), name


def test_a_rewrite_that_needs_forgotten_frames_is_refused() -> None:
    model = wan()
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    passes: Passes = [(0, 3, 0), (3, 3, 0), (6, 3, 0), (9, 3, 0), (7, 3, 0)]
    with headforce.prepare(model, policy=policy):
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        with pytest.raises(HeadforceError, match="HF-FORGOTTEN"):
            outputs(compiled, model.config, passes)


def test_a_sink_that_grows_while_the_cache_evicts_is_refused() -> None:
    """Its new rows are not those of the first frames (a chunk of a scene cut, pinned behind the sink)."""
    layer = Layer(None, 0)
    for start, first_row, evicted, sink in ((0, 0, 0, None), (3, 72, 0, None), (6, 72, 72, 24), (9, 72, 72, 24)):
        facts = PassFacts(start, 3, 24, first_row, 144, ((0, first_row + 72),), evicted=evicted, sink=sink)
        layer.ran(facts, layer.rows_evicted(facts))
    with pytest.raises(HeadforceError, match=r"HF-CLOCK.*behind 48 rows.*behind 24 rows"):
        layer.rows_evicted(PassFacts(12, 3, 24, 72, 144, ((0, 144),), evicted=72, sink=48))


@pytest.mark.parametrize(
    ("start", "first_row"), [(0, 72), (3, 0), (6, 72)], ids=["pinned query", "pinned write", "ahead"]
)
def test_a_clock_that_contradicts_the_cache_is_refused(start: int, first_row: int) -> None:
    facts = PassFacts(start, 3, 24, first_row, cache_rows=144, segments=((0, first_row + 72),))
    with pytest.raises(HeadforceError, match="HF-CLOCK"):
        Layer(None, 0).rows_evicted(facts)
