"""A body of several layers is cut behind every attention, and what layers repeat is compiled once."""

from __future__ import annotations

import operator

import pytest
import torch
from torch.fx import Graph, GraphModule

import headforce
from examples.causal_wan import Rollout
from headforce.kvpass.ops import writes_in_place
from headforce.kvpass.pieces import in_pieces
from headforce.policy import Policy

from .conftest import text, wan
from .test_bodies import compiled  # noqa: F401  a fixture
from .test_owned_identity import relative


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_what_layers_repeat_is_compiled_once(inner, compiled):  # noqa: F811
    """Of the first pass, which makes keys and values of the text, and of all others: what stands in front of the first
    attention, what stands between two, and what is left behind the last."""
    model, lengths = wan(num_layers=4), [3] * 2
    expected = Rollout(model, model.config, (1000.0,)).generate(text(model.config), lengths)
    with headforce.prepare(model, policy=Policy({})) as session:
        session.compile(inner=inner)
        video = Rollout(model, model.config, (1000.0,)).generate(text(model.config), lengths)
        assert (len(compiled), session.launches) == (6, [4] * 4)
    assert relative(video, expected) < 1e-5
    attentions = [count(module, torch.ops.headforce.ragged_attention.default) for module in compiled]
    assert attentions == [1, 1, 0] * 2


def count(module, target):
    return sum(node.target is target for node in module.graph.nodes)


# --- bodies by hand ---------------------------------------------------------------------------------------------------


class Layers:
    """Layers of `x = attention(x * weight) + x`, of which a test may change one."""

    def __init__(self, layers=4):
        self.mode = torch._subclasses.FakeTensorMode()
        self.graph, self.examples = Graph(), []
        shape = (1, 8, 2, 16)
        self.input("x", shape)
        for name in ("pool", "reads", "runs", "theta"):
            self.input(name, (8, 8, 16) if name == "pool" else (4, 8))
        x, *tables = inputs = list(self.graph.nodes)
        for layer in range(layers):
            more = self.layer(layer, x)
            x = x if more is None else self.call(operator.add, x, more)
            x = self.call(operator.add, self.attention(self.call(operator.mul, x, 2.0), *tables), x)
        self.graph.output((x,))
        self.own = [False] + [True] * (len(inputs) - 1)

    def input(self, name, shape):
        node = self.graph.placeholder(name)
        node.meta["example_value"] = self.mode.from_tensor(torch.ones(shape))
        self.examples.append(node.meta["example_value"])

    def call(self, function, *args):
        return self.graph.call_function(function, args)

    def attention(self, query, pool, *tables):
        function = torch.ops.headforce.ragged_attention.default
        return self.call(function, query, pool, pool, *tables, 0, "interleaved", 1.0, "reference")

    def layer(self, number, x):
        """What a test adds in front of a layer, and to its input."""

    @torch.no_grad()
    def cut(self):
        return in_pieces(GraphModule({}, self.graph), self.examples, self.own)


def test_pieces_pass_on_what_is_still_read():
    pieces = Layers().cut()
    assert [len(piece.takes) for piece in pieces.pieces] == [5, 6, 6, 6, 2]
    assert [tuple(e.shape for e in piece.examples) for piece in pieces.pieces][1:3] == [
        ((1, 8, 2, 16),) * 2 + ((8, 8, 16),) + ((4, 8),) * 3
    ] * 2
    dropped = [number for piece in pieces.pieces for number in piece.drops]
    assert len(dropped) == len(set(dropped))
    assert not set(dropped) & set(pieces.returns)


def test_joined_pieces_are_the_body():
    layers = Layers()
    for node in layers.graph.nodes:
        if node.target is torch.ops.headforce.ragged_attention.default:
            node.update_arg(9, "stand-in")
    pieces = layers.cut()

    def stand_in(query, pool, _, reads, *rest):
        return query.cumsum(1) + pool.mean() * reads.sum()

    for piece in pieces.pieces:
        for node in piece.module.graph.nodes:
            if node.target is torch.ops.headforce.ragged_attention.default:
                node.target = stand_in
        piece.module.recompile()
    x, pool, reads, _, _ = inputs = [torch.randn(e.shape) for e in layers.examples]
    expected = x
    for _ in range(4):
        expected = stand_in(expected * 2.0, pool, pool, reads) + expected
    (result,) = pieces.joined([piece.module for piece in pieces.pieces])(*inputs)
    assert torch.equal(result, expected)


def test_too_few_layers_stay_whole():
    assert Layers(2).cut() is None


def test_with_gradients_a_body_stays_whole():
    layers = Layers()
    assert in_pieces(GraphModule({}, layers.graph), layers.examples, layers.own) is None


class Grad(Layers):
    def layer(self, number, x):
        if number == 1:
            self.call(torch._C._set_grad_enabled, False)


class Shapes(Layers):
    """A tuple passes from the first layer to the last."""

    def layer(self, number, x):
        if number == 0:
            self.parts = self.call(torch.chunk, x, 1)
        return self.call(operator.getitem, self.parts, 0) if number == 3 else None


class Written(Layers):
    """A tensor that the second layer makes and the last one changes in place."""

    def layer(self, number, x):
        if number == 1:
            self.kept = self.call(operator.mul, x, 3.0)
        if number == 3:
            self.graph.call_method("add_", (self.kept, x))


class WrittenInput(Layers):
    def layer(self, number, x):
        if number == 0:
            self.graph.call_method("add_", (x, 1.0))


class WrittenThroughAView(Layers):
    """What the first layer shows of a tensor, the third one changes, by a function that says so in an argument."""

    def layer(self, number, x):
        if number == 0:
            self.kept = self.call(operator.mul, x, 3.0)
            self.shown = self.graph.call_function(torch.ops.aten.slice.Tensor, (self.kept, 1, 0, 4))
        if number == 2:
            self.graph.call_function(torch.nn.functional.silu, (self.shown,), {"inplace": True})


@pytest.mark.parametrize("body", [Grad, Shapes, Written, WrittenInput, WrittenThroughAView])
def test_what_does_not_come_apart_stays_whole(body):
    assert body().cut() is None


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "writes"),
    [
        (torch.nn.functional.relu, (), {"inplace": True}, True),
        (torch.nn.functional.relu, (True,), {}, True),
        (torch.nn.functional.relu, (False,), {}, False),
        (torch.nn.functional.relu, (), {}, False),
    ],
)
def test_a_function_may_be_asked_to_write_in_place(function, arguments, keywords, writes):
    graph = Graph()
    x = graph.placeholder("x")
    assert writes_in_place(graph.call_function(function, (x, *arguments), keywords), x) is writes


def test_a_function_of_many_tensors_may_write_each():
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    assert all(writes_in_place(graph.call_function(torch._foreach_add_, ([x, y], 1.0)), node) for node in (x, y))


class WrittenAtHome(Layers):
    """A tensor that one layer makes and changes for itself."""

    def layer(self, number, x):
        made = self.call(operator.mul, x, 3.0)
        self.graph.call_method("add_", (made, x))


class Dead(Layers):
    """A view that nobody reads, as tracing leaves them."""

    def layer(self, number, x):
        self.call(torch.permute, x, (0, 2, 1, 3))


class Asserting(Layers):
    """As Self-Forcing's own model does in front of its layers, which also leaves an embedding that nobody uses."""

    def layer(self, number, x):
        if number == 0:
            unused = self.call(torch.nn.functional.gelu, x)
            unused.meta["example_value"] = x.meta["example_value"]
            self.call(torch._assert_async, self.call(torch.all, self.call(operator.gt, x, -1.0)))


class Permuted(Layers):
    """The first layer makes `x` as models do behind a convolution: columns lie one after the other."""

    def layer(self, number, x):
        if number == 0:
            order = (0, 3, 2, 1)
            columns = self.graph.call_method("contiguous", (self.call(torch.permute, x, order),))
            self.shown = self.call(operator.mul, self.call(torch.permute, columns, order), 1.0)
        return self.shown


@pytest.mark.parametrize("body", [Dead, Asserting])
def test_what_nobody_uses_does_not_matter(body):
    assert len(body().cut().pieces) == 5


def test_what_passes_lies_row_by_row():
    """Eager keeps the order of dims that a tensor has from the first layer on, and kernels would have to follow it."""
    pieces = Permuted().cut()
    passed = [example for piece in pieces.pieces[1:] for example in piece.examples]
    assert len(passed) > 4
    assert all(example.is_contiguous() for example in passed)
    clones = [count(piece.module, torch.clone) for piece in pieces.pieces]
    assert clones == [1, 0, 0, 0, 0]


def test_strides_that_a_compiler_did_not_keep_are_restored():
    pieces = Layers().cut()
    seen = []

    def careless(piece):
        def run(*values):
            seen.append([value.stride() for value in values])
            return [piece_value.transpose(1, 2).contiguous().transpose(1, 2) for piece_value in results(values)]

        results = lambda values: [values[0] + i for i, _ in enumerate(piece.strides)]  # noqa: E731
        return run

    joined = pieces.joined([careless(piece) for piece in pieces.pieces])
    inputs = [torch.randn(e.shape) for e in pieces.pieces[0].examples]
    for _ in range(2):
        seen.clear()
        joined(*inputs)
        for strides, piece in zip(seen, pieces.pieces, strict=True):
            assert strides == [example.stride() for example in piece.examples]


def test_memory_that_one_piece_writes_for_itself_is_no_obstacle():
    assert len(WrittenAtHome().cut().pieces) == 5
