"""View mode: the model keeps its cache, and attention reads the rows that a policy names.

What a policy may ask of such a cache is tested in test_view_policies.py.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce import HeadforceError
from headforce.kvpass.layers import viewed
from headforce.kvpass.torch_private import storage_key
from headforce.policy import Policy
from headforce.testing import zoo

from .conftest import text, videos, wan
from .oracle_model import oracle_model
from .test_owned_identity import FILL_EVICT_RESTART, relative
from .test_owned_policy import TOLERANCE

EAGER = {"inner": "eager"}
NATIVE = Policy({})
LENGTHS = ([3] * 6, [3] * 3)
# The tiny model holds 6 frames, so 3 of the past; with a sink of 1 they are frame 0 and the newest two.
HEADS = """
    headforce: 0
    classes:
      a: sink(1) | window(1)
      b: sink(1)@collapse(3) | window(2)
      c: drop()
      d: 'window(2) | stride(4, phase="query", last=1)@clamp(2) & window(2)'
    default: b
    """
BY_LAYER = HEADS + "heads: {0: {a: [0, 2], b: [1], c: [3]}, 1: {c: [0], d: [1, 3], a: [2]}}"


@pytest.fixture(autouse=True)
def nothing_watched() -> Iterator[None]:
    viewed.clear()
    yield
    viewed.clear()


def bare(policy: Policy, **options: object) -> dict[str, object]:
    return {**EAGER, "policy": policy, **options}


def test_native_is_bitwise() -> None:
    model = wan(sink_size=1, num_layers=2)
    eager, ours = (Rollout(model, model.config, (1000.0, 625.0)) for _ in range(2))
    ours.model = torch.compile(model, backend="headforce", options=bare(NATIVE, verify="plan"), fullgraph=True)
    for seed, chunks in enumerate(FILL_EVICT_RESTART):
        one, other = (rollout.generate(text(model.config, 2), chunks, seed=seed) for rollout in (eager, ours))
        assert torch.equal(one, other)
    assert [layer.launches for layer in viewed.values()] == [8 * 3] * 2
    for a, b in zip(eager.kv_cache, ours.kv_cache, strict=True):  # the model's cache holds what eager leaves in it
        assert torch.equal(a["k"], b["k"])
        assert torch.equal(a["v"], b["v"])


@pytest.mark.slow
def test_bfloat16_is_bitwise() -> None:
    model = wan(dtype=torch.bfloat16)
    eager = videos(model, model.config, FILL_EVICT_RESTART, dtype=torch.bfloat16)
    compiled = torch.compile(model, backend="headforce", options=bare(NATIVE))
    result = videos(compiled, model.config, FILL_EVICT_RESTART, dtype=torch.bfloat16)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, eager, strict=True))


def test_compiled_equals_eager_masked_to_the_oracle() -> None:
    policy = Policy.loads(BY_LAYER)
    model = wan(sink_size=1, num_layers=2)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS, batch=2)
    compiled = torch.compile(model, backend="headforce", options=bare(policy, verify="plan"), fullgraph=True)
    result = videos(compiled, model.config, LENGTHS, batch=2)
    assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, expected, strict=True))


def test_the_tolerance_would_show_one_dropped_frame() -> None:
    policy = Policy.loads(BY_LAYER)
    model = wan(sink_size=1)

    def without_the_sink(head: int, read: dict[int, int]) -> dict[int, int]:
        return {f: p for f, p in read.items() if (head, f) != (2, 0)}

    whole = videos(oracle_model(model, policy), model.config, LENGTHS)
    dropped = videos(oracle_model(model, policy, without_the_sink), model.config, LENGTHS)
    assert all(relative(a, b) > 10 * TOLERANCE for a, b in zip(dropped, whole, strict=True))


@pytest.mark.slow
def test_inductor_is_within_rounding() -> None:
    policy = Policy.loads(HEADS)
    model = wan(sink_size=1)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS)
    for block in model.blocks:
        block.compile(backend="headforce", options={"policy": policy}, fullgraph=True)
    result = videos(model, model.config, LENGTHS)
    assert all(layer.launches == 9 * 3 for layer in viewed.values())
    assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.slow
def test_prepared_equals_the_oracle_and_a_second_policy_adds_no_graph() -> None:
    model = wan(sink_size=1, num_layers=2)
    with headforce.prepare(model, policy=NATIVE, mode="view"):
        compiled = torch.compile(model, backend="headforce", options=EAGER, fullgraph=True)
        videos(compiled, model.config, LENGTHS)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= 5
    policy = Policy.loads(BY_LAYER)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS)
    with headforce.prepare(model, policy=policy, mode="view", verify="plan") as session:
        result = videos(compiled, model.config, LENGTHS)
        assert session.launches == [9 * 3] * 2
        assert session.misses == session.pool_bytes == 0
        assert session.report.count("rewritten") == 2 * session.report.graphs
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.slow
def test_owned_and_view_share_graphs() -> None:
    models = [wan(0), wan(1)]
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    expected = [videos(oracle_model(model, policy), model.config, LENGTHS) for model in models]
    sessions = [
        headforce.prepare(model, policy=policy, mode=m) for model, m in zip(models, ("owned", "view"), strict=True)
    ]
    counts = []
    for model, wanted in zip(models, expected, strict=True):
        result = videos(torch.compile(model, backend="headforce", options=EAGER), model.config, LENGTHS)
        assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, wanted, strict=True))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]
    for session in sessions:
        session.restore()


@pytest.mark.slow
def test_inference_mode_copies_and_reloaded_weights() -> None:
    model, other = wan(0, sink_size=1, num_layers=2), wan(1, sink_size=1, num_layers=2)
    policy = Policy.loads(BY_LAYER)
    expected = [videos(oracle_model(m, policy), model.config, ([3] * 4,))[0] for m in (model, other)]
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="headforce", options=bare(policy))
    with torch.inference_mode():
        assert relative(videos(compiled, model.config, ([3] * 4,))[0], expected[0]) < TOLERANCE
        model.load_state_dict(other.state_dict())
        assert relative(videos(compiled, model.config, ([3] * 4,))[0], expected[1]) < TOLERANCE
        again = torch.compile(twin, backend="headforce", options=bare(policy))
        assert relative(videos(again, model.config, ([3] * 4,))[0], expected[0]) < TOLERANCE


@pytest.mark.slow
def test_dynamic_shapes() -> None:
    model = wan(sink_size=1)
    policy = Policy.loads(HEADS)
    expected = videos(oracle_model(model, policy), model.config, ([3] * 3,))
    compiled = torch.compile(model, backend="headforce", options=bare(policy), dynamic=True)
    assert relative(videos(compiled, model.config, ([3] * 3,))[0], expected[0]) < TOLERANCE


@pytest.mark.slow
def test_autocast_equals_autocast_eager() -> None:
    model = wan(sink_size=1)
    with torch.autocast("cpu", torch.bfloat16):
        eager = videos(model, model.config, ([3] * 4,), dtype=torch.bfloat16)
        compiled = torch.compile(model, backend="headforce", options=bare(NATIVE))
        assert torch.equal(videos(compiled, model.config, ([3] * 4,), dtype=torch.bfloat16)[0], eager[0])


# --- which layer is which ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["blocks", "graph break"])
def test_a_graph_that_layers_share_needs_prepare_for_a_policy_by_layer(form: str) -> None:
    policy = Policy.loads(BY_LAYER)
    model = wan(sink_size=1, num_layers=2)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS)

    def compiled(options: dict[str, object]) -> object:
        torch._dynamo.reset()
        if form == "blocks":
            for block in model.blocks:
                block.compile(backend="headforce", options=options)
            return model
        model.blocks[0].ffn.register_forward_hook(lambda *_: torch._dynamo.graph_break())
        return torch.compile(model, backend="headforce", options=options)

    with pytest.raises(HeadforceError, match="HF-LAYER-ID"):
        videos(compiled(bare(policy)), model.config, ([3],))
    with headforce.prepare(model, policy=policy, mode="view") as session:
        result = videos(compiled(EAGER), model.config, LENGTHS)
        assert session.launches == [9 * 3] * 2
        assert session.misses == 0
    assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.slow
def test_a_policy_that_treats_layers_alike_needs_no_numbers() -> None:
    policy = Policy.loads(HEADS)
    model = wan(sink_size=1, num_layers=3)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS)
    for block in model.blocks:
        block.compile(backend="headforce", options=bare(policy))
    result = videos(model, model.config, LENGTHS)
    assert len({layer.caches for layer in viewed.values()}) == 3
    assert all(relative(ours, theirs) < TOLERANCE for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.slow
def test_caches_that_are_views_of_one_tensor() -> None:
    policy = Policy.loads(BY_LAYER)
    model = wan(sink_size=1, num_layers=2)
    expected = videos(oracle_model(model, policy), model.config, LENGTHS)
    rollout = Rollout(torch.compile(model, backend="headforce", options=bare(policy)), model.config, (1000.0, 625.0))
    rollout._prepare_caches(text(model.config))
    whole = torch.zeros(2, 2, *rollout.kv_cache[0]["k"].shape)
    for layer, cache in enumerate(rollout.kv_cache):
        cache["k"], cache["v"] = whole[:, layer]
    result = rollout.generate(text(model.config), LENGTHS[0], seed=0)
    assert relative(result, expected[0]) < TOLERANCE
    for layer, cache in enumerate(rollout.kv_cache):
        cache["k"], cache["v"] = whole[layer]
    result = rollout.generate(text(model.config), LENGTHS[0], seed=0)
    assert relative(result, expected[0]) < TOLERANCE


def test_layers_that_share_memory_are_refused() -> None:
    model = wan(num_layers=2)
    rollout = Rollout(torch.compile(model, backend="headforce", options=bare(NATIVE)), model.config)
    rollout._prepare_caches(text(model.config))
    shape = rollout.kv_cache[0]["k"].shape
    whole = torch.zeros(shape[0], shape[1] + 4, *shape[2:])
    for layer, cache in enumerate(rollout.kv_cache):
        cache["k"] = whole[:, 4 * layer : 4 * layer + shape[1]]
    with pytest.raises(HeadforceError, match="HF-ADOPT"):
        rollout.generate(text(model.config), [3])


@pytest.mark.slow
def test_a_freed_cache_is_forgotten_even_if_its_address_comes_back() -> None:
    model = wan(sink_size=1)
    policy = Policy.loads(HEADS)
    compiled = torch.compile(model, backend="headforce", options=bare(policy))
    expected = videos(oracle_model(model, policy), model.config, ([3] * 3,))
    for _ in range(3):  # caches of the same size, one after the other
        assert relative(videos(compiled, model.config, ([3] * 3,))[0], expected[0]) < TOLERANCE
        gc.collect()
        assert [key.expired for key in viewed] == [True]  # nothing of ours keeps a cache alive


class Stack(torch.nn.Module):
    """Layers that are called in any order, on caches in any order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(zoo.SelfAttention() for _ in range(count))

    def forward(self, x: torch.Tensor, caches: list[zoo.Cache], start: int, order: list[tuple[int, int]]):
        for block, cache in order:
            x = x + self.blocks[block](x, caches[cache], start)
        return x


@pytest.mark.parametrize("order", [[(1, 1), (0, 0)], [(1, 0), (0, 1)], [(0, 1), (1, 2)]])
def test_numbers_are_those_of_caches_and_modules_or_refused(order: list[tuple[int, int]]) -> None:
    """Layers that run in another order keep their numbers; names that disagree, or do not begin with 0, say nothing."""
    stack = Stack(2)
    policy = Policy.loads("headforce: 0\nclasses: {a: drop()}\nlayers: {0: a}")
    compiled = torch.compile(stack, backend="headforce", options=bare(policy))
    caches = [block.new_cache() for block in [*stack.blocks, stack.blocks[0]]]
    x, start = next(zoo.inputs(1))
    with torch.no_grad():
        if order[0] != (1, 1):
            with pytest.raises(HeadforceError, match="HF-LAYER-ID"):
                compiled(x, caches, start, order)
            return
        compiled(x, caches, start, order)
    assert viewed[storage_key(caches[0]["k"])].number == 0
    assert viewed[storage_key(caches[1]["k"])].number == 1


def test_interleaved_caches_are_not_taken_for_overlapping_ones() -> None:
    stack = Stack(2)
    compiled = torch.compile(stack, backend="headforce", options=bare(NATIVE))
    caches = [block.new_cache(batch=2) for block in stack.blocks]
    whole = torch.randn(2, 2, *caches[0]["k"].shape[1:])  # [B, L, C, H, D]
    for layer, cache in enumerate(caches):
        cache["k"] = whole[:, layer]
    (x, start), *_ = zoo.inputs(1, batch=2)
    expected = copy.deepcopy((stack, caches))
    with torch.no_grad():
        result = compiled(x, caches, start, [(0, 0), (1, 1)])
        assert relative(result, expected[0](x, expected[1], start, [(0, 0), (1, 1)])) < TOLERANCE
        # Another batch size in the same memory: the older cut is given up.
        half = [{**cache, "k": cache["k"][:1], "v": cache["v"][:1], "held": 0, "seen": 0} for cache in caches]
        compiled(x[:1], half, start, [(0, 0), (1, 1)])


# --- saying no --------------------------------------------------------------------------------------------------


def test_gradients_are_refused_without_prepare() -> None:
    layer = zoo.SelfAttention()
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE))
    x, start = next(zoo.inputs(1))
    with pytest.raises(HeadforceError, match="HF-GRAD"):
        compiled(x, layer.new_cache(), start)


def test_a_query_for_a_part_of_the_new_rows_is_refused() -> None:
    """K and V of two frames, a query of one: which frame it is does not show."""
    layer = zoo.SelfAttention(core=lambda q, k, v: zoo.sdpa(q[:, : zoo.TOKENS], k, v))
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE))
    with pytest.raises(HeadforceError, match="HF-LAYOUT"):
        rollout_of(layer, compiled, 1)


def test_another_models_caches_bring_no_other_policy() -> None:
    model = wan()
    other = Policy.loads("headforce: 0\nclasses: {a: drop()}\ndefault: a")
    compiled = torch.compile(model, backend="headforce", options=bare(other))
    near = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    with headforce.prepare(model, policy=near, mode="view"), pytest.raises(HeadforceError, match="HF-OPTION"):
        videos(compiled, model.config, ([3],))


def test_a_site_that_was_refused_before_prepare_is_refused_after_it() -> None:
    """The graph was compiled when nobody had asked for anything."""
    model = wan()

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = torch.tril(torch.ones(q.shape[1], k.shape[1], dtype=torch.bool))
        operands = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*operands, attn_mask=mask, dropout_p=0.1).transpose(
            1, 2
        )

    from examples.causal_wan import attention

    original, attention.attend = attention.attend, masked
    try:
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        videos(compiled, model.config, ([3],))
        with headforce.prepare(model, policy=NATIVE, mode="view"), pytest.raises(HeadforceError, match="HF-DROPOUT"):
            videos(compiled, model.config, ([3],))
    finally:
        attention.attend = original


def test_a_policy_for_more_layers_than_the_graph_has() -> None:
    model = wan(num_layers=2)
    policy = Policy.loads("headforce: 0\nclasses: {a: drop()}\nlayers: {2: a}")
    with pytest.raises(HeadforceError, match="HF-POLICY-SHAPE"):
        videos(torch.compile(model, backend="headforce", options=bare(policy)), model.config, ([3],))


# --- other forms of models --------------------------------------------------------------------------------------


def rollout_of(layer: zoo.SelfAttention, compiled: object, chunks: int, frames: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(5)
    cache = layer.new_cache(frames=frames)
    with torch.no_grad():
        return [compiled(x, cache, start) for x, start in zoo.inputs(chunks, passes=1)]


@pytest.mark.parametrize(
    ("protocol", "core", "rope", "raw", "chunks"),
    [
        ("append", "sdpa", "complex", False, 5),
        pytest.param("append", "sdpa_permuted", "turned", False, 5, marks=pytest.mark.slow),
        pytest.param("append", "sdpa_reshaped", "half", False, 5, marks=pytest.mark.slow),
        ("append", "sdpa_masked", "half_lanes", False, 5),
        pytest.param("append", "sdpa_gqa", "stacked", False, 5, marks=pytest.mark.slow),
        pytest.param("append", "sdpa_repeated", "written", False, 5, marks=pytest.mark.slow),
        pytest.param("append", "written", "complex_batched", False, 5, marks=pytest.mark.slow),
        pytest.param("append", "written_einsum", "complex", False, 5, marks=pytest.mark.slow),
        pytest.param("append_short_window", "sdpa", "complex", False, 5, marks=pytest.mark.slow),
        pytest.param("append_copy", "sdpa", "complex", False, 3, marks=pytest.mark.slow),
        ("append_joined", "sdpa", "complex", False, 5),
        pytest.param("append_heads_first", "sdpa", "complex", False, 3, marks=pytest.mark.slow),
        ("append", "sdpa", "complex", True, 3),  # keys rotated when read: the clock is lost when the cache rolls
        ("cat_past", "sdpa", "complex", False, 5),
        pytest.param("cat_past", "sdpa_gqa", "half", False, 5, marks=pytest.mark.slow),
        pytest.param("cat_past", "sdpa", "complex", True, 5, marks=pytest.mark.slow),
        ("cat_window", "sdpa", "complex", False, 5),
    ],
)
def test_every_form_under_native_and_under_a_policy(
    protocol: str, core: str, rope: str, raw: bool, chunks: int
) -> None:
    layer = zoo.SelfAttention(rope, protocol, core, raw_cache=raw)
    eager = rollout_of(layer, layer, chunks)
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE, verify="plan"))
    for ours, theirs in zip(rollout_of(layer, compiled, chunks), eager, strict=True):
        assert relative(ours, theirs) < TOLERANCE
    torch._dynamo.reset()
    policy = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
    compiled = torch.compile(layer, backend="headforce", options=bare(policy, verify="plan"))
    windowed = zoo.SelfAttention(rope, protocol, _newest(core, 3 * zoo.TOKENS), raw_cache=raw)
    windowed.kv_heads = layer.kv_heads
    windowed.k, windowed.v = layer.k, layer.v
    windowed.load_state_dict(layer.state_dict())
    expected = rollout_of(windowed, windowed, chunks)
    for ours, theirs in zip(rollout_of(layer, compiled, chunks), expected, strict=True):
        assert relative(ours, theirs) < TOLERANCE
    assert relative(expected[-1], eager[-1]) > 10 * TOLERANCE


def _newest(core: str, rows: int) -> object:
    """`core` over the newest rows of what the protocol hands it."""
    return lambda q, k, v: zoo.CORES[core][0](q, k[:, -rows:], v[:, -rows:])


def test_a_past_of_unknown_frames_is_refused() -> None:
    layer = zoo.SelfAttention(protocol="cat_past")
    compiled = torch.compile(layer, backend="headforce", options=bare(NATIVE))
    with pytest.raises(HeadforceError, match="HF-CLOCK"):
        rollout_of(layer, compiled, 1, frames=5)


def test_a_warm_up_over_a_joined_past_is_refused() -> None:
    layer = zoo.SelfAttention(protocol="cat_past")
    policy = Policy.loads("headforce: 0\nclasses: {a: window(2)}\ndefault: a\nwarmup: {chunks: 1}")
    compiled = torch.compile(layer, backend="headforce", options=bare(policy))
    with pytest.raises(HeadforceError, match="HF-VIEW"):
        rollout_of(layer, compiled, 3)
