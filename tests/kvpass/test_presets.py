"""Published systems on a model: compiled and owned equals eager attention masked to what the oracle says is read.

Systems whose heads keep parts are in test_presets_with_parts.py, Dummy Forcing in test_classify.py, and all of them
with several prompts in test_prompts.py.
"""

import pytest
import torch

import headforce
from headforce.presets import Labels, head_forcing, longlive

from .conftest import videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

ROLES = Labels((("local", "anchor", "memory", "memory"), ("memory", "memory", "local", "anchor")))


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [(longlive(window=6, sink=1), [1, 3, 3, 3])],
    ids=["longlive"],
)
def test_equals_eager_masked_to_the_oracle(policy, lengths):
    """Through the warm-up and past the first eviction; two videos with the same caches."""
    model = wan(sink_size=1)
    expected = videos(oracle_model(model, policy), model.config, (lengths, lengths[:2]))
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        found = videos(compiled, model.config, (lengths, lengths[:2]))
        assert all(count > 0 for count in session.launches)
    for a, b in zip(found, expected, strict=True):
        assert relative(a, b) < 1e-5


def test_head_forcing_fills_its_episodes_and_moves_positions():
    """Every plan, its stores and its positions among it, is checked against the oracle while the model runs."""
    policy = head_forcing(ROLES, memory_slots=2, memory_window=3, memory_sink=1, novelty=0.999)
    model = wan(sink_size=1)
    with headforce.prepare(model, policy=policy, verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        (video,) = videos(compiled, model.config, ([3] * 5,))
        stream = session.cache_sets[0].stream
        held = [lane.memory.held["episodic"] for lane in stream.lanes if lane.memory is not None]
    assert torch.isfinite(video).all()
    assert any(held)
