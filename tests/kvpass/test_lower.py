"""What is left of a graph after lowering: with a target that rotates by itself, the model's own RoPE is gone."""

import pytest
import torch

from headforce.kvpass.find import find_sites
from headforce.kvpass.lower import lower_owned
from headforce.kvpass.torch_private import copy_graph
from headforce.testing import zoo


@torch.no_grad()
def lowered_graph(layer, arguments, target):
    """The one graph of a call after lowering, and its first site."""
    graphs = []

    def keep(module, examples):
        report = find_sites(module, examples)
        inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
        fakes = [n.meta.get("example_value", e) for n, e in zip(inputs, examples, strict=True)]
        copied, sites = copy_graph(module, report.found)
        graphs.append((lower_owned(copied, fakes, sites, target, torch.device("cpu")).module, report.found[0]))
        return module.forward

    torch.compile(layer, backend=keep, fullgraph=True)(*arguments)
    return graphs[0]


def lowered(rope, target):
    """One attention layer."""
    layer = zoo.SelfAttention(rope=rope)
    (x, start), *_ = zoo.inputs(1, 1, 1, torch.float32)
    arguments = (x, layer.new_cache(1, frames=5), start)
    return lowered_graph(layer, arguments, target)


class Twice(zoo.SelfAttention):
    """Attention whose result is the query of another one, over a cache of its own."""

    def forward(self, x, first, second, start):
        q, k, v = (linear(x).view(*x.shape[:2], zoo.HEADS, zoo.HEAD_DIM) for linear in (self.q, self.k, self.v))
        for cache in (first, second):
            turned, key = (self.rope(t, self.freqs, start // zoo.TOKENS).type_as(v) for t in (q, k))
            q = self.core(turned, *self.protocol(key, v, cache, start))
        return self.o(q.flatten(2))


@pytest.mark.parametrize("target", ["sdpa", "triton"])
def test_a_query_that_is_what_an_earlier_site_computed(target):
    layer = Twice(rope="complex")
    (x, start), *_ = zoo.inputs(1, 1, 1, torch.float32)
    caches = [layer.new_cache(1, frames=5) for _ in range(2)]
    module, _ = lowered_graph(layer, (x, *caches, start), target)
    assert calls(module).count(torch.ops.headforce.ragged_attention.default) == 2
    module.graph.lint()


def calls(module):
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("rope", [rope for rope in zoo.ROPES if rope not in ("none", "written")])
def test_a_target_that_rotates_leaves_none_of_the_models_rotation(rope):
    module, site = lowered(rope, "triton")
    assert calls(module).count(torch.ops.headforce.rotate_and_write.default) == 1
    assert torch.ops.headforce.write_pages.default not in calls(module)
    names = {node.name for node in module.graph.nodes}
    assert site.rope.raw_query.node.name in names
    assert not {site.query.node.name, site.new_key.node.name} & names
    module, site = lowered(rope, "sdpa")
    assert torch.ops.headforce.rotate_and_write.default not in calls(module)
    assert {site.query.node.name, site.new_key.node.name} <= {node.name for node in module.graph.nodes}


def test_without_rope_there_is_nothing_to_rotate():
    module, _ = lowered("none", "triton")
    assert calls(module).count(torch.ops.headforce.write_pages.default) == 1
    assert torch.ops.headforce.rotate_and_write.default not in calls(module)
