"""Published systems on a model, compiled and owned, against eager attention that gathers what the oracle names.

What is decided from keys is decided by the compiled side and replayed by the eager one; that the choice is the best is
tested in tests/lowering/test_parts.py, with a margin. Dummy Forcing that classifies by itself is in test_classify.py,
and every preset with several prompts in test_prompts.py.
"""

import copy

import pytest
import torch

import examples.causal_wan as example
import headforce
from headforce.demo.reference import Control, Oracle, install_oracle
from headforce.presets import Labels, deep_forcing, forcing_kv

from .conftest import text, wan
from .presets import PRESETS
from .test_owned_identity import relative

pytestmark = pytest.mark.shares_graphs

KINDS = Labels((("static", "dynamic", "dynamic", "dynamic"), ("dynamic", "static", "dynamic", "static")))
POLICIES = PRESETS | {
    "forcing_kv, grouped in every layer": forcing_kv(
        KINDS, dynamic_window=2, selected=2, ungrouped_layers=(), warmup_chunks=1
    ),
    "deep_forcing, tokens": deep_forcing(sink=2, budget=7, recent=4, window=10),
}
PARTS = {
    "deep_forcing": {"select"},
    "deep_forcing, tokens": {"select"},
    "forcing_kv": {"select"},
    "forcing_kv, grouped in every layer": {"select"},
    "pyramid_forcing": {"merge"},
}
"""Kinds of the parts of frames that heads read; others read whole frames."""
SCHEDULES = [
    pytest.param([3] * 7, id="threes"),
    pytest.param([1] * 16, id="ones", marks=pytest.mark.slow),
    pytest.param([1, 3, 3, 3, 3, 3], id="one and threes", marks=pytest.mark.slow),
]


def both(model, policy, lengths, verify="plan"):
    """For every pass, (compiled, eager) flows; the eager side is told what the compiled one decided."""
    twin = copy.deepcopy(model)
    config = model.config
    with headforce.prepare(model, policy=policy, verify=verify) as session:
        native = session.native(config.cache_frames * config.tokens_per_frame, config.tokens_per_frame)
        shape = {"layers": config.num_layers, "heads": config.num_heads, "tokens": config.tokens_per_frame}
        bound = policy.bind(native=native, **shape)

        def record(layer, head):
            memory = session.cache_sets[-1].stream.lane(layer, head).memory
            return memory.explained() if memory else None

        install_oracle(twin, Oracle(bound, example, record, Control(0, 0)))
        compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
        sides = [example.Rollout(m, config, timesteps=(1000.0, 625.0)) for m in (compiled, twin)]
        passes = [side.passes(text(config), lengths, 0) for side in sides]
        for one, other in zip(*passes, strict=True):
            yield session, one, other


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_equals_eager_that_gathers_what_the_oracle_names(schedule):
    """Through the warm-up, selections, merges and episodes, and past the first eviction of the model's own cache.

    All in one test: they run the same compiled graphs.
    """
    model = wan(sink_size=1, num_layers=2)
    for name, policy in POLICIES.items():
        parts, held = set(), set()
        for session, one, other in both(copy.deepcopy(model), policy, schedule):
            assert relative(one.x0, other.x0) < 1e-5, name
            stream = session.cache_sets[0].stream
            parts |= {item.kind for head in stream.plan.heads for reading in head.readings for item in reading.parts}
            held |= {store for lane in stream.lanes if lane.memory for store, has in lane.memory.held.items() if has}
            launches = session.launches
        assert parts == PARTS.get(name, set()), name
        assert ("episodic" in held) == (name == "head_forcing")
        assert set(launches) == {3 * len(schedule)}


def test_a_missing_segment_shows():
    """The comparison would see it: a head that lacks one segment is far off."""
    policy, model = PRESETS["forcing_kv"], wan(sink_size=1, num_layers=2)
    errors = []
    for session, one, other in both(model, policy, [3] * 5, verify="off"):
        errors.append(relative(one.x0, other.x0))
        for lane in session.cache_sets[0].stream.lanes:
            if lane.memory and lane.memory.stores:
                # The record that the eager side replays loses a segment behind the compiled side's back.
                units = lane.memory.stores["select"]
                lane.memory.stores["select"] = tuple(unit.newest(len(unit) - 1) for unit in units)
    assert errors[0] < 1e-5
    assert max(errors) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep_forcing", "deep_forcing, tokens"])
def test_v12_noisy_passes_leave_nothing(name):
    """A clean pass gives the same, bit for bit, whatever passes went before it, also where queries decide."""
    model, config = wan(sink_size=1), wan(sink_size=1).config
    drawn = torch.Generator().manual_seed(3)
    size = (1, config.channels, 3, config.latent_height, config.latent_width)
    clean = [torch.randn(size, generator=drawn) for _ in range(6)]
    sides = []
    for timesteps in ((1000.0, 625.0, 0.0), (0.0,)):
        with headforce.prepare(model, policy=POLICIES[name], verify="plan") as session:
            compiled = torch.compile(model, backend="headforce", options={"inner": "eager"})
            caches = example.allocate_kv_cache(config), example.allocate_crossattn_cache(config)
            flows = []
            for i, x in enumerate(clean):
                for t in timesteps:
                    seen = x if t == 0 else torch.randn(size, generator=torch.Generator().manual_seed(int(t) + i))
                    with torch.no_grad():
                        flow = compiled(
                            seen, torch.full((1, 3), t), text(config), *caches, 3 * i * config.tokens_per_frame
                        )
                flows.append(flow)
            sides.append((flows, [lane.held for lane in session.cache_sets[0].stream.lanes]))
    assert all(map(torch.equal, sides[0][0], sides[1][0]))
    assert sides[0][1] == sides[1][1]
    assert any(held.get("select") for held in sides[0][1])
