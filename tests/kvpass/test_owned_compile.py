"""Layer identity and graph sharing in whole-model graphs: several policies, models, threads. Blocks: test_regional."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy

from .conftest import text, videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

EAGER = {"inner": "eager"}
LENGTHS = ([3] * 4,)
# Layer 0 forgets everything, layer 1 nothing: if one layer's policy reached the other, every output would change.
BY_LAYER = Policy.loads("headforce: 0\nclasses: {none: drop(), near: window(4)}\nlayers: {0: none, 1: near}")
OTHERS = [
    Policy.loads("headforce: 0\nclasses: {a: window(1), b: sink(1)}\ndefault: a\nheads: {0: {b: [1]}}"),
    Policy.loads("headforce: 0\nclasses: {a: 'sink(2) | window(1)'}\ndefault: a"),
]


def compiled_pieces() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_caches_that_are_views_of_one_tensor() -> None:
    model = wan(num_layers=2)
    expected = videos(oracle_model(model, BY_LAYER), model.config, LENGTHS)
    with headforce.prepare(model, policy=BY_LAYER):
        rollout = Rollout(torch.compile(model, backend="headforce", options=EAGER), model.config, (1000.0, 625.0))
        rollout._prepare_caches(text(model.config))
        k = torch.zeros(2, *rollout.kv_cache[0]["k"].shape)
        for layer, cache in enumerate(rollout.kv_cache):
            cache["k"], cache["v"] = k[layer], k[layer].clone()
        result = rollout.generate(text(model.config), LENGTHS[0], seed=0)
    assert relative(result, expected[0]) < 1e-5  # and each layer has its own rules


@pytest.mark.slow
def test_one_graph_per_variant_for_all_policies_models_and_threads() -> None:
    """Three policies, two models, two threads: as many graphs as one policy, one model and one thread."""
    models = [wan(seed, num_layers=2) for seed in (0, 1)]
    policies = [BY_LAYER, *OTHERS]
    # Dynamo's guards are not safe against two threads that check them at the same moment (it then reports "runtime
    # guards failed even though they passed" and compiles again), so the threads take turns, pass by pass.
    turn = threading.Lock()

    def run(model: torch.nn.Module, policy: Policy) -> list[torch.Tensor]:
        with headforce.prepare(model, policy=policy):
            compiled = torch.compile(model, backend="headforce", options=EAGER)

            def one_at_a_time(*args, **kwargs):
                with turn:
                    return compiled(*args, **kwargs)

            return videos(one_at_a_time, model.config, ([3] * 4, [3] * 2))

    expected = {
        (i, j): videos(oracle_model(model, policy), model.config, ([3] * 4, [3] * 2))
        for i, model in enumerate(models)
        for j, policy in enumerate(policies)
    }
    results = {(0, 0): run(models[0], policies[0])}
    graphs = compiled_pieces()
    assert graphs <= 5

    def all_policies(i: int) -> None:
        for j, policy in enumerate(policies):
            results[i, j] = run(models[i], policy)

    threads = [threading.Thread(target=all_policies, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled_pieces() == graphs
    assert not torch._dynamo.utils.counters["graph_break"]
    for key, video in expected.items():
        assert all(relative(ours, theirs) < 1e-5 for ours, theirs in zip(results[key], video, strict=True)), key


@pytest.mark.slow
def test_no_new_graph_after_the_first_eviction() -> None:
    model = wan(sink_size=1)
    with headforce.prepare(model, policy=OTHERS[0]) as session:
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        rollout = Rollout(compiled, model.config, (1000.0, 625.0))
        graphs = []
        for chunks in ([3] * 3, [3] * 7, [3] * 5):  # the third chunk evicts
            rollout.generate(text(model.config), chunks)
            graphs.append(session.report.graphs)
        assert graphs[0] == graphs[1] == graphs[2] <= 5
        assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_inference_mode() -> None:
    model = wan()
    expected = videos(oracle_model(model, OTHERS[0]), model.config, LENGTHS)
    with headforce.prepare(model, policy=OTHERS[0]), torch.inference_mode():
        result = videos(torch.compile(model, backend="headforce", options=EAGER), model.config, LENGTHS)
    assert relative(result[0], expected[0]) < 1e-5


@pytest.mark.slow
def test_dynamic_shapes_and_dynamo_reset() -> None:
    model = wan()
    expected = videos(oracle_model(model, OTHERS[0]), model.config, ([3] * 3, [3]))
    with headforce.prepare(model, policy=OTHERS[0]):
        compiled = torch.compile(model, backend="headforce", options=EAGER, dynamic=True)
        rollout = Rollout(compiled, model.config, (1000.0, 625.0))
        first = rollout.generate(text(model.config), [3] * 3, seed=0)
        torch._dynamo.reset()
        second = rollout.generate(text(model.config), [3], seed=1)
    assert relative(first, expected[0]) < 1e-5
    assert relative(second, expected[1]) < 1e-5


@pytest.mark.slow
def test_autocast_equals_autocast_eager() -> None:
    model = wan(sink_size=1)
    with torch.autocast("cpu", torch.bfloat16):
        eager = videos(model, model.config, LENGTHS, dtype=torch.bfloat16)
        with headforce.prepare(model, policy=Policy({}), canonical_order=True):
            compiled = torch.compile(model, backend="headforce", options=EAGER)
            result = videos(compiled, model.config, LENGTHS, dtype=torch.bfloat16)
    assert torch.equal(result[0], eager[0])


@pytest.mark.slow
def test_a_deep_copy_is_a_model_of_its_own() -> None:
    model = wan(num_layers=2)
    eager = videos(model, model.config, LENGTHS)
    with headforce.prepare(model, policy=BY_LAYER):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        policed = videos(compiled, model.config, LENGTHS)
        twin = copy.deepcopy(model)
        assert torch.equal(videos(twin, model.config, LENGTHS)[0], eager[0])
        free = torch.compile(twin, backend="headforce", options=EAGER)
        assert relative(videos(free, model.config, LENGTHS)[0], eager[0]) < 1e-5
        assert relative(videos(compiled, model.config, LENGTHS)[0], policed[0]) < 1e-6


@pytest.mark.slow
def test_weights_loaded_later_count() -> None:
    model, other = wan(0, num_layers=2), wan(1, num_layers=2)
    expected = videos(oracle_model(other, BY_LAYER), model.config, LENGTHS)
    with headforce.prepare(model, policy=BY_LAYER):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        videos(compiled, model.config, LENGTHS)
        model.load_state_dict(other.state_dict())
        assert relative(videos(compiled, model.config, LENGTHS)[0], expected[0]) < 1e-5
