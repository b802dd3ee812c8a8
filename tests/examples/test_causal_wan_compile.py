"""The model traces into one graph, and few graphs serve a whole rollout."""

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from examples.causal_wan import TINY, CausalWan, Rollout, init_random

MODEL = dataclasses.replace(TINY, local_attn_size=6, sink_size=1)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rollout_twice(config, chunks, batch=1, dtype=torch.float32):
    """Compiled graphs after each pass of two videos; checks the first video against eager, bit for bit."""
    model = init_random(CausalWan(config), seed=0, peaked=True).to(dtype)
    context = torch.randn(batch, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    counter = CompileCounterWithBackend("eager")
    compiled = Rollout(torch.compile(model, backend=counter, fullgraph=True))
    graphs = {}
    for seed in (0, 1):
        for done in compiled.passes(context, chunks, seed):
            graphs[seed, done.chunk, done.step] = counter.frame_count
            if seed == 0 and done.clean:
                graphs.setdefault("video", []).append(done.x0)
    video = torch.cat(graphs.pop("video"), dim=2)
    assert torch.equal(video, Rollout(model).generate(context, chunks, seed=0))
    return graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [(1, torch.float32), (2, torch.bfloat16)],
    ids=["1-fp32", "2-bf16"],
)
def test_five_graphs_fill_evict_and_restart(batch, dtype):
    graphs = rollout_twice(MODEL, [3] * 5, batch, dtype)
    first_eviction = graphs[0, 2, 0]
    assert first_eviction <= 5
    assert max(graphs.values()) == first_eviction, "a later pass needed a new graph"


@pytest.mark.slow
def test_three_graphs_without_a_window():
    graphs = rollout_twice(dataclasses.replace(MODEL, local_attn_size=-1, sink_size=0), [3] * 4)
    assert max(graphs.values()) <= 3


@pytest.mark.slow
def test_irregular_chunks_settle():
    """A chunk of one frame has graphs of its own; the second video, with the same chunks, adds none."""
    chunks = [1, 3, 3, 2]
    graphs = rollout_twice(dataclasses.replace(MODEL, num_layers=1), chunks)
    assert max(graphs.values()) == graphs[0, len(chunks) - 1, 4] <= 7


@pytest.mark.slow
def test_a_block_compiles_on_its_own():
    model = init_random(CausalWan(MODEL), seed=0, peaked=True)
    context = torch.randn(1, MODEL.text_len, MODEL.text_dim)
    expected = Rollout(model).generate(context, [3] * 4)
    counter = CompileCounterWithBackend("eager")
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    assert torch.equal(Rollout(model).generate(context, [3] * 4), expected)
    assert counter.frame_count <= 5, "the layers share their graphs"
