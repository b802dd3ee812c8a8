"""Forcing-KV and Pyramid Forcing on a model, compiled and owned, against eager attention that gathers what the oracle
names.

Which segments are kept is decided by the compiled side and replayed by the eager one; that the choice is the best is
tested in tests/lowering/test_parts.py, with a margin.
"""

import copy

import pytest
import torch

import examples.causal_wan as example
import headforce
from headforce.demo.reference import Control, Oracle, install_oracle
from headforce.presets import Labels, deep_forcing, forcing_kv, pyramid_forcing

from .conftest import text, wan
from .test_owned_identity import relative

KINDS = Labels((("static", "dynamic", "dynamic", "dynamic"), ("dynamic", "static", "dynamic", "static")))
VIEWS = Labels((("wave", "anchor", "veil", "veil"), ("veil", "wave", "anchor", "wave")))
POLICIES = {
    "forcing_kv": forcing_kv(KINDS),
    "forcing_kv, all layers": forcing_kv(KINDS, dynamic_window=2, selected=2, ungrouped_layers=(), warmup_chunks=1),
    "pyramid_forcing": pyramid_forcing(VIEWS),
    "deep_forcing": deep_forcing(sink=2, budget=7, recent=4, window=10),
}
SCHEDULES = {"threes": [3] * 7, "ones": [1] * 14, "one and threes": [1, 3, 3, 3, 3, 3]}


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


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_equals_eager_that_gathers_what_the_oracle_names(schedule):
    """Through the warm-up, selections and merges, and past the first eviction of the model's own cache.

    All in one test: they run the same compiled graphs.
    """
    model = wan(sink_size=1)
    # Frame by frame only the system whose heads read by query frame: the others are no different there.
    names = ["pyramid_forcing"] if schedule == SCHEDULES["ones"] else list(POLICIES)
    for name, policy in ((name, POLICIES[name]) for name in names):
        read = set()
        for session, one, other in both(copy.deepcopy(model), policy, schedule):
            assert relative(one.x0, other.x0) < 1e-5, name
            plan = session.cache_sets[0].stream.plan
            read |= {item.kind for head in plan.heads for reading in head.readings for item in reading.parts}
            launches = session.launches
        assert read == ({"merge"} if name == "pyramid_forcing" else {"select"}), name
        assert set(launches) == {3 * len(schedule)}


def test_a_missing_segment_shows():
    """The comparison would see it: a head that lacks one segment is far off."""
    policy, model = POLICIES["forcing_kv"], wan(sink_size=1)
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
