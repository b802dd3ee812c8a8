"""View mode: what a policy may ask of a cache that the model keeps, and how it is refused when it asks for more.

The tiny model holds 6 frames, 3 of the past with chunks of 3. Sinks are part of its window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import headforce
from examples.causal_wan import CausalWan, Rollout
from headforce import HeadforceError
from headforce.policy import Policy

from .conftest import text, videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import FILL_EVICT_RESTART, relative
from .test_owned_policy import TOLERANCE

pytestmark = pytest.mark.shares_graphs


def everywhere(rule: str, rest: str = "") -> Policy:
    """One rule for all heads."""
    return Policy.loads(f"headforce: 0\nclasses: {{a: '{rule}'}}\ndefault: a\n{rest}")


@contextmanager
def viewing(model: CausalWan, policy: Policy) -> Iterator[object]:
    """The compiled model, whose plans are checked."""
    with headforce.prepare(model, policy=policy, mode="view", verify="plan") as session:
        yield torch.compile(model, backend="headforce", options={"inner": "eager"}, fullgraph=True)
        assert session.misses == 0


@pytest.mark.slow
def test_native_without_a_sink_is_bitwise() -> None:
    model = wan()
    eager = videos(model, model.config, FILL_EVICT_RESTART)
    with viewing(model, Policy({})) as compiled:
        result = videos(compiled, model.config, FILL_EVICT_RESTART)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, eager, strict=True))


@pytest.mark.slow
def test_irregular_chunks_and_a_warm_up() -> None:
    warmup = "warmup: {{chunks: 2, rule: {}}}"
    policy = everywhere("sink(1) | window(1)", warmup.format("native()"))
    reference = everywhere("sink(1) | window(1)", warmup.format("'sink(1) | span(5)'"))
    model = wan(sink_size=1)
    lengths = ([1, 3, 3, 2],)
    expected = videos(oracle_model(model, reference), model.config, lengths)
    with viewing(model, policy) as compiled:
        assert relative(videos(compiled, model.config, lengths)[0], expected[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("rule", "chunks"),
    [
        pytest.param("window(3)", [6, 3, 3], marks=pytest.mark.slow),  # a prefill, after which chunks are shorter
        pytest.param("window(4)", [3, 1, 1, 1], marks=pytest.mark.slow),
        pytest.param("window(3) & native()", [3] * 4, marks=pytest.mark.slow),
    ],
)
def test_what_the_cache_can_serve_is_not_refused(rule: str, chunks: list[int]) -> None:
    model = wan()
    expected = videos(oracle_model(model, everywhere(rule.split(" &")[0])), model.config, (chunks,))
    with viewing(model, everywhere(rule)) as compiled:
        assert relative(videos(compiled, model.config, (chunks,))[0], expected[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("window(6)", "HF-EVICTED"),  # 5 past frames fit, if chunks become as short as they can
        ("sink(1) | window(5)", "HF-EVICTED"),
        ("stride(4, phase=0, last=2)", "HF-EVICTED"),
        ("episodic(2, write=novel(0.5))", "HF-VIEW"),
    ],
)
def test_rules_beyond_the_models_cache_are_refused_in_the_first_pass(rule: str, code: str) -> None:
    model = wan(sink_size=1)
    with viewing(model, everywhere(rule)) as compiled, pytest.raises(HeadforceError, match=code):
        videos(compiled, model.config, ([3],))


def test_a_sink_that_the_model_does_not_keep_is_refused_when_it_is_gone() -> None:
    model = wan()
    with viewing(model, everywhere("sink(1) | window(1)")) as compiled:
        videos(compiled, model.config, ([3, 3],))  # nothing is evicted yet
        with pytest.raises(HeadforceError, match="HF-EVICTED"):
            videos(compiled, model.config, ([3] * 4,))


def test_a_rule_that_wants_too_much_is_refused_when_it_does() -> None:
    model = wan()
    with viewing(model, everywhere("window(4)")) as compiled:  # with chunks of 3, only 3 fit
        videos(compiled, model.config, ([3, 3],))
        for _ in range(2):  # and says the same when it is tried again
            with pytest.raises(HeadforceError, match="HF-EVICTED"):
                videos(compiled, model.config, ([3] * 3,))


def test_a_refused_pass_is_refused_alike_when_it_is_tried_again() -> None:
    model = wan()
    with viewing(model, everywhere("window(1)", "horizon: 6")) as compiled:
        rollout = Rollout(compiled, model.config, (1000.0,))
        rollout.generate(text(model.config), [3, 3])
        x = torch.randn(1, model.config.channels, 3, model.config.latent_height, model.config.latent_width)
        for _ in range(2):
            with pytest.raises(HeadforceError, match="HF-HORIZON"):
                rollout._forward(x, 500.0, text(model.config), 6)
