"""Graphs of one video that differ in their numbers have one body, which is compiled once; and no others do."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import torch
from torch.fx import Graph, GraphModule

import headforce
from examples.causal_wan import Rollout
from headforce.kvpass import bodies
from headforce.kvpass.options import Options
from headforce.kvpass.parted import partable, parted
from headforce.kvpass.torch_private import captures_by_itself
from headforce.policy import Policy

from .conftest import text, wan
from .test_owned_identity import relative

SETTINGS = Options(inner="eager")


@pytest.fixture
def compiled(monkeypatch):
    """The bodies that were compiled."""
    modules, compile_inner = [], bodies.compile_inner

    def noted(module, *rest):
        modules.append(module)
        return compile_inner(module, *rest)

    monkeypatch.setattr(bodies, "compile_inner", noted)
    return modules


@pytest.mark.slow
def test_the_five_graphs_of_a_video_have_two_bodies(compiled):
    """The first pass makes keys and values of the text; its repeats, growing, repeats and evicting are one function."""
    model, lengths = wan(sink_size=1), [3] * 5
    expected = Rollout(model, model.config).generate(text(model.config), lengths)
    with headforce.prepare(model, policy=Policy({})) as session:
        session.compile(inner="eager")
        video = Rollout(model, model.config).generate(text(model.config), lengths)
        assert (session.report.graphs, len(compiled)) == (5, 2)
        assert relative(video, expected) < 1e-5


def test_a_body_goes_with_the_last_graph_that_has_it(compiled):
    before = len(bodies._COMPILED)
    model = wan()
    with headforce.prepare(model, policy=Policy({})) as session:
        session.compile(inner="eager")
        Rollout(model, model.config, (1000.0,)).generate(text(model.config), [3])
        assert len(bodies._COMPILED) == before + 2
    torch._dynamo.reset()
    del session, model
    assert len(bodies._COMPILED) == before


# --- what a graph is told by ----------------------------------------------------------------------------------------


def graph_of(bounds=(0, 2), scale=2.0, function=operator.mul, rows=8, dtype=torch.float32, before=None):
    """`table[a:b] * x * scale`, and what its RoPE table is; example values are fakes, as Dynamo's are."""
    mode = torch._subclasses.FakeTensorMode()
    graph, sizes = Graph(), ((rows, 2), (2,))
    table, x = inputs = [graph.placeholder(name) for name in ("table", "x")]
    examples = [mode.from_tensor(torch.ones(size, dtype=dtype)) for size in sizes]
    source = table
    if before is not None:
        source = graph.call_method(before, (table,))
        source.meta["example_value"] = examples[0]
    cut = graph.call_function(operator.getitem, (source, slice(*bounds)))
    cut.meta["example_value"] = examples[0][:2]
    product = graph.call_function(function, (cut, x))
    graph.output((graph.call_function(operator.mul, (product, scale)),))
    for node, example in zip(inputs, examples, strict=True):
        node.meta["example_value"] = example
    return GraphModule({}, graph), examples, [table]


def key_of(settings=SETTINGS, **changes):
    module, examples, tables = graph_of(**changes)
    return key_of_parts(parted(module, examples, 0, tables), settings)


def key_of_parts(parts, settings=SETTINGS):
    return bodies._key(parts.body, parts.examples, parts.own, settings)


def test_rows_of_a_table_are_the_fronts_wherever_they_lie():
    assert key_of() is not None
    assert key_of() == key_of(bounds=(3, 5))
    assert key_of() == key_of(rows=100)


@pytest.mark.parametrize(
    "change",
    [{"scale": 3.0}, {"scale": 2}, {"scale": True}, {"function": operator.add}, {"dtype": torch.float64}],
    ids=str,
)
def test_another_computation_is_another_body(change):
    assert key_of(**change) not in (None, key_of())


def test_the_stride_of_a_single_batch_row_does_not_matter():
    def key(stride, size):
        module, examples, _ = graph_of()
        x = torch.empty_strided((size, 2), (stride, 1))
        examples[1] = examples[0].fake_mode.from_tensor(x)
        module.graph.find_nodes(op="placeholder")[1].meta["example_value"] = examples[1]
        return key_of_parts(parted(module, examples, 0, module.graph.find_nodes(op="placeholder")[:1]))

    assert key(100, 1) == key(7, 1) != key(7, 2)
    assert key(100, 2) != key(7, 2)


def test_zeros_of_either_sign_are_two():
    assert key_of(scale=0.0) != key_of(scale=-0.0)


def test_another_compiler_is_another_body():
    assert key_of(replace(SETTINGS, inner="inductor")) != key_of()
    options = replace(SETTINGS, inner_options={"max_autotune": True})
    assert key_of(options) != key_of()


def test_what_has_weights_in_it_is_not_shared():
    """Two layers, or two models, may have the same graph."""
    assert key_of(replace(SETTINGS, inner_options={"freezing": True})) is None
    with torch._inductor.config.patch(freezing=True):
        assert key_of() is None
        assert key_of(replace(SETTINGS, inner_options={"freezing": False})) is not None


def test_what_inductor_captures_stays_whole():
    assert captures_by_itself("reduce-overhead", {})
    assert not captures_by_itself("reduce-overhead", {"triton.cudagraphs": False})
    assert not captures_by_itself(None, {})
    assert bodies._in_pieces(None, [], [], Options(inner_mode="reduce-overhead")) is None


def test_what_surrounds_a_graph_is_part_of_it():
    """Dynamo makes another graph when one of these changes, and so it is another body."""
    before, threads = key_of(), torch.get_num_threads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert key_of() != before
    torch.set_num_threads(threads + 1)
    try:
        assert key_of() != before
    finally:
        torch.set_num_threads(threads)
    assert key_of() == before


def test_a_tensor_in_a_graph_is_not_compared():
    assert key_of(scale=torch.ones(2)) is None


def test_a_graph_that_writes_to_its_models_tensors_has_a_body_of_its_own():
    module, examples, tables = graph_of()
    x = next(node for node in module.graph.nodes if node.name == "x")
    with module.graph.inserting_before(next(node for node in module.graph.nodes if node.op == "output")):
        module.graph.call_method("add_", (x, 1.0))
    assert key_of_parts(parted(module, examples, 0, tables)) is None


@pytest.mark.parametrize(("before", "cut"), [(None, True), ("float", True), ("sin", False)])
def test_only_numbers_and_views_are_left_uncompiled(before, cut):
    """`before` runs in front of a slice by a number, so it would be the front's."""
    module, examples, _ = graph_of(before=before)
    rows = next(node for node in module.graph.nodes if node.target is operator.getitem)
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        start = module.graph.placeholder("start")
    rows.args = (rows.args[0], slice(start, None))
    assert partable(module, [3, *examples]) is cut
