"""Passes that are captured and replayed, with a stand-in for CUDA graphs: when, from which memory, and to what end."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import torch
from torch.fx import Graph, GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

import headforce
from examples.causal_wan import Rollout
from headforce.kvpass.captured import Captured
from headforce.kvpass.cuda_graphs import CudaGraphs
from headforce.kvpass.parted import parted
from headforce.kvpass.site_graph import SiteGraph
from headforce.lowering.watch import watching
from headforce.policy import Policy, parse_rule
from headforce.testing import assert_refused
from headforce.testing.rerun import Rerun, rerunning

from .conftest import text, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

CPU = torch.device("cpu")
NEAR = Policy({"near": parse_rule("sink(1) | window(2)"), "far": parse_rule("window(3)")}, "near", {1: {"far": (0,)}})
SHRINKING = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a\nwarmup: {chunks: 3, rule: window(9)}")
TIMESTEPS = (1000.0, 625.0)


class Videos:
    """Videos of five chunks with the caches of one stream; the third chunk evicts."""

    def __init__(self, model):
        self.rollout, self.text = Rollout(model, model.config, TIMESTEPS), text(model.config)

    def __call__(self, on_pass=lambda: None):
        return self.rollout.generate(self.text, [3] * 5, seed=0, on_pass=lambda _: on_pass())


def captured(session) -> list[Captured]:
    return [one for graph in session._graphs for one in graph.captured]


def addresses(session) -> tuple[int, ...]:
    pool = session.cache_sets[-1].pool
    return tuple(t.data_ptr() for t in (pool.k, pool.v, *pool.reads, *pool.runs, *pool.pages))


@pytest.mark.parametrize("policy", [NEAR, pytest.param(SHRINKING, marks=pytest.mark.slow)], ids=["steady", "shrinking"])
def test_replays_equal_passes_that_run(policy):
    model, where = wan(sink_size=1, num_layers=2), []
    expected = Videos(oracle_model(model, policy))()
    with rerunning(), headforce.prepare(model, policy) as session:
        session.compile(inner="eager", cudagraphs=True)
        video = Videos(model)
        for _ in range(2):
            assert relative(video(lambda: where.append(addresses(session))), expected) < 1e-5
        assert session.launches == [30, 30]
        graphs = captured(session)
        if policy is NEAR:
            # Commits and evictions leave pools and tables where they are, and so every graph has one capture.
            assert len(set(where)) == 1
            assert {one.captures for one in graphs} == {1}
            assert session.replays == 30 - len(graphs)  # all passes but the first of each graph
        else:
            # Pools are laid out anew behind the warm-up: what moved is captured again.
            assert len(set(where)) > 1
            assert max(one.captures for one in graphs) > 1
            assert session.replays > 15


@pytest.mark.slow
def test_weights_that_move_are_captured_again():
    model = wan(sink_size=1, num_layers=2)
    with rerunning(), headforce.prepare(model, NEAR) as session:
        session.compile(inner="eager", cudagraphs=True)
        video, weight = Videos(model), model.blocks[0].self_attn.o.weight
        before = [video() for _ in range(2)][-1]
        captures = sum(one.captures for one in captured(session))
        weight.data = 2 * weight.data
        doubled = [video() for _ in range(2)][-1]
        assert relative(doubled, before) > 1e-3
        assert sum(one.captures for one in captured(session)) > captures
        weight.data.mul_(0.5)  # in place: replays read what is there now
        replays = session.replays
        assert torch.equal(video(), before)
        assert session.replays == replays + 15


# --- what is refused ------------------------------------------------------------------------------------------------


def test_without_a_cuda_device_it_is_refused():
    model = wan()
    with headforce.prepare(model, NEAR) as session:
        session.compile(inner="eager", cudagraphs=True)
        with assert_refused("HF-CUDAGRAPHS", found="tensors on cpu"):
            Videos(model)()


def test_view_mode_is_refused():
    model = wan()
    with rerunning(), headforce.prepare(model, Policy({}), mode="view") as session:
        session.compile(inner="eager", cudagraphs=True)
        with assert_refused("HF-CUDAGRAPHS", found="view mode"):
            Videos(model)()


@pytest.mark.slow
def test_sizes_that_change_are_refused():
    model = wan()
    with rerunning(), headforce.prepare(model, NEAR):
        options = {"inner": "eager", "cudagraphs": True}
        compiled = torch.compile(model, backend="headforce", dynamic=True, options=options)
        rollout = Rollout(compiled, model.config, TIMESTEPS)
        with assert_refused("HF-CUDAGRAPHS"):
            rollout.generate(text(model.config), [3, 3], seed=0)


def test_a_target_that_asks_the_device_is_refused():
    with assert_refused("HF-CUDAGRAPHS", found="target sdpa"):
        CudaGraphs(torch.device("cuda"), "sdpa")


def test_inputs_on_another_device_are_refused():
    captures = Captured(halves()[0], lambda *_: [], Rerun(CPU, "sdpa"), torch.device("meta"))
    with assert_refused("HF-CUDAGRAPHS", found="on cpu"):
        captures(torch.ones(8, 2), 3, torch.ones(2))


# --- the cut --------------------------------------------------------------------------------------------------------


def halves(attend_first: bool = False):
    """`table[start : start + 2] * x`, and `start + 2`, cut in two; or with a write to the table before."""
    graph = Graph()
    table, start, x = (graph.placeholder(name) for name in ("table", "start", "x"))
    examples = [torch.ones(8, 2), 3, torch.ones(2)]
    stop = graph.call_function(operator.add, (start, 2))
    source = table
    if attend_first:
        graph.call_method("add_", (table, 1.0))
    rows = graph.call_function(operator.getitem, (source, slice(start, stop)))
    product = graph.call_function(operator.mul, (rows, x))
    graph.output((product, stop, x))
    stop.meta["example_value"], rows.meta["example_value"] = 5, torch.ones(2, 2)
    return parted(GraphModule({}, graph), examples, added=0), examples


def test_numbers_are_read_in_front():
    parts, _ = halves()
    assert parts.takes == (2,)  # the table is read in front, and nothing else knows the number
    assert parts.made == 1
    table, x = torch.randn(8, 2), torch.randn(2)
    run = Captured(parts, parts.body.forward, Rerun(CPU, "sdpa"), CPU)
    for start in (3, 3, 5, 1):
        product, stop, same = run(table, start, x)
        assert torch.equal(product, table[start : start + 2] * x)
        assert stop == start + 2
        assert same is x
    assert (run.captures, run.replays) == (1, 3)


def test_expanded_inputs_keep_their_strides():
    parts, _ = halves()
    run = Captured(parts, parts.body.forward, Rerun(CPU, "sdpa"), CPU)
    table = torch.randn(8, 2)
    for value in (1.0, 2.0, 3.0):
        x = torch.full((1,), value).expand(2)
        assert torch.equal(run(table, 0, x)[0], table[:2] * value)
    assert run.replays == 2


def test_memory_of_several_layers_is_captured_for_each():
    parts, _ = halves()
    run = Captured(replace(parts, stable=(True,)), parts.body.forward, Rerun(CPU, "sdpa"), CPU)
    table, layers = torch.randn(8, 2), [torch.randn(2) for _ in range(3)]
    for _ in range(4):
        for x in layers:
            assert torch.equal(run(table, 1, x)[0], table[1:3] * x)
    assert (run.captures, run.replays) == (3, 9)


def test_who_looks_on_sees_everything_run():
    parts, _ = halves()
    run = Captured(parts, parts.body.forward, Rerun(CPU, "sdpa"), CPU)
    with watching(object()):
        for _ in range(3):
            run(torch.randn(8, 2), 1, torch.randn(2))
    assert (run.captures, run.replays) == (0, 0)


def test_results_are_the_callers_own():
    parts, _ = halves()
    run = Captured(parts, lambda x, rows: [x.view(1, 2)], Rerun(CPU, "sdpa"), CPU)
    results = [run(torch.randn(8, 2), 0, torch.full((2,), float(i)))[0] for i in range(4)]
    assert [r.mean().item() for r in results] == [0.0, 1.0, 2.0, 3.0]


def test_a_write_in_front_of_a_number_is_refused():
    with assert_refused("HF-CUDAGRAPHS"):
        halves(attend_first=True)


# --- no question to the device --------------------------------------------------------------------------------------


class NoQuestions(TorchDispatchMode):
    """Raises for what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default), func
        return func(*args, **(kwargs or {}))

    def during(self, function, *args):
        with self:
            return function(*args)


@pytest.mark.slow
def test_a_steady_pass_asks_the_device_nothing(monkeypatch):
    """Everything but the kernels themselves: the interpreter, which would run them here, asks on its own account."""
    from headforce.lowering import attention, rotate_and_write

    model = wan(sink_size=1, num_layers=2)
    launched = []
    for module in (attention, rotate_and_write):
        monkeypatch.setattr(module, "launch", lambda kernel, *_: launched.append(kernel))
    with headforce.prepare(model, NEAR) as session:
        session.compile(inner="eager", target="triton")
        rollout = Rollout(model, model.config, TIMESTEPS)
        passes = rollout.passes(text(model.config), [3] * 5, seed=0)
        for _ in range(12):  # through the first evictions
            next(passes)
        with pytest.raises(AssertionError), NoQuestions():
            torch.ones(1).item()
        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "nonzero"):
            monkeypatch.setattr(torch.Tensor, name, forbidden(name))
        # Inside the call that Dynamo makes: under such a mode it would compile nothing.
        call = SiteGraph.__call__
        monkeypatch.setattr(SiteGraph, "__call__", lambda *args: NoQuestions().during(call, *args))
        launched.clear()
        for _ in range(3):  # another chunk: a commit, an eviction, new tables
            next(passes)
        assert len(launched) == 3 * 2 * len(model.blocks)


def forbidden(name):
    def ask(*_, **__):
        raise AssertionError(f"a pass called Tensor.{name}")

    return ask
