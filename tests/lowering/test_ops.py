"""The operators under the compiler: their schemas are true, and a compiled graph writes the pools where they are."""

import math
import re

import pytest
import torch
import torch._dynamo.testing
from torch._inductor.utils import run_and_get_code

from headforce.kernels.rotation import INTERLEAVED
from headforce.lowering import ops  # noqa: F401  registers the operators
from headforce.lowering.pool import PagePool, PageShape
from headforce.lowering.stream import Stream
from headforce.policy import Policy, parse_rule

HEADS, ROWS, DIM = 3, 4, 8
SCALE = DIM**-0.5
write_pages = torch.ops.headforce.write_pages
ragged_attention = torch.ops.headforce.ragged_attention


class Pass:
    """The inputs of one layer in one pass of a stream with three rules, at a given frame."""

    def __init__(self, start=9, frames=3, dtype=torch.float32, batch=1):
        rules = {
            "a": parse_rule('sink(1)@collapse(4) | stride(4, phase="query", last=2) | window(1)'),
            "b": parse_rule("window(4)"),
            "c": parse_rule("drop()"),
        }
        policy = Policy(rules, heads={0: {"a": (0,), "b": (1,), "c": (2,)}}).bind(layers=1, heads=HEADS)
        self.pool = PagePool(Stream(policy, batch), PageShape(batch, ROWS, DIM, DIM, dtype, torch.device("cpu")))
        self.generator = torch.Generator().manual_seed(start)
        for begin in range(0, start + 1, frames):
            self.pool.stream.begin(begin, frames)
            self.pool.update()
        for pool in (self.pool.k, self.pool.v):
            pool.copy_(self._random(*pool.shape))
        self.query, self.key, self.value = (self._random(batch, frames * ROWS, HEADS, DIM) for _ in range(3))
        self.theta = torch.tensor([0.7, 0.3], dtype=torch.float64)

    def _random(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.pool.k.dtype)

    def inputs(self):
        pool = self.pool
        tensors = (self.query, self.key, self.value, pool.k, pool.v, pool.reads[0], pool.runs[0], pool.pages[0])
        return [t.clone() for t in (*tensors, self.theta)]


def site(query, key, value, k_pool, v_pool, reads, runs, pages, theta):
    """One attention site as the pass lowers it, with something to fuse before and after it."""
    write_pages(key * 1.5, value + 1, k_pool, v_pool, pages)
    out = ragged_attention(query * 2, k_pool, v_pool, reads, runs, theta, 1, INTERLEAVED, SCALE, "sdpa")
    return torch.nn.functional.silu(out) + 1


def two_sites(query, key, value, k_pool, v_pool, reads, runs, pages, theta):
    """Two passes over one pool: the second site reads what the second write left, not the first."""
    first = site(query, key, value, k_pool, v_pool, reads, runs, pages, theta)
    return first, site(query, first, value, k_pool, v_pool, reads, runs, pages, theta)


# --- schema and fake --------------------------------------------------------------------------------------------

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic", "test_aot_dispatch_static")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_write_pages_is_what_it_says(dtype, batch):
    _, key, value, k_pool, v_pool, _, _, pages, _ = Pass(dtype=dtype, batch=batch).inputs()
    torch.library.opcheck(write_pages, (key, value, k_pool, v_pool, pages), test_utils=CHECKS)
    strided = [torch.stack([t, t], dim=2)[:, :, 1].transpose(1, 2).contiguous().transpose(1, 2) for t in (key, value)]
    torch.library.opcheck(write_pages, (*strided, k_pool, v_pool, pages), test_utils=CHECKS)


@pytest.mark.parametrize("target", ["sdpa", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ragged_attention_is_what_it_says(dtype, target):
    query, _, _, k_pool, v_pool, reads, runs, _, theta = Pass(dtype=dtype).inputs()
    arguments = (k_pool, v_pool, reads, runs, theta, 1, INTERLEAVED, SCALE, target)
    torch.library.opcheck(ragged_attention, (query, *arguments), test_utils=CHECKS)
    transposed = query.transpose(1, 2).contiguous().transpose(1, 2)
    torch.library.opcheck(ragged_attention, (transposed, *arguments), test_utils=CHECKS)
    narrow = v_pool[..., :5].contiguous()
    torch.library.opcheck(ragged_attention, (query, k_pool, narrow, *arguments[2:]), test_utils=CHECKS)


# --- under torch.compile ----------------------------------------------------------------------------------------


def run(function, inputs):
    """The outputs, and the pools afterwards."""
    with torch.no_grad():
        out = function(*inputs)
    return [*(out if isinstance(out, tuple) else (out,)), inputs[3], inputs[4]]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_sites_are_the_eager_ones(backend):
    torch._dynamo.reset()
    compiled = torch.compile(two_sites, backend=backend, fullgraph=True, dynamic=True)
    for start in (0, 3, 12):
        example = Pass(start)
        inputs = example.inputs()
        places = [inputs[3].data_ptr(), inputs[4].data_ptr()]
        torch.testing.assert_close(run(compiled, inputs), run(two_sites, example.inputs()))
        assert [inputs[3].data_ptr(), inputs[4].data_ptr()] == places
        assert not torch.equal(inputs[3], example.pool.k)


def test_one_graph_serves_every_chunk_and_every_policy():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(site, backend=counter, fullgraph=True, dynamic=True)
    for start, frames in ((0, 5), (5, 5), (12, 3), (8, 4), (10, 2), (0, 5)):
        run(compiled, Pass(start, frames).inputs())
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor_updates_the_pools_in_place():
    torch._dynamo.reset()
    example = Pass()
    compiled = torch.compile(two_sites, backend="inductor", fullgraph=True)
    result, (code,) = run_and_get_code(run, compiled, example.inputs())
    torch.testing.assert_close(result, run(two_sites, example.inputs()))
    assert len(re.findall(r"torch\.ops\.headforce\.write_pages\.default\(", code)) == 2
    assert len(re.findall(r"torch\.ops\.headforce\.ragged_attention\.default\(", code)) == 2
    # The pools are the arguments of both operators as they came in, and nothing else of their size is ever made.
    written = re.findall(r"write_pages\.default\(\w+, \w+, (\w+), (\w+), ", code)
    read = re.findall(r"ragged_attention\.default\(\w+, (\w+), (\w+), ", code)
    assert set(written) == set(read)
    assert len(set(written)) == 1
    assert all(name.startswith("arg") for name in written[0])
    assert not copies(code, example.pool.k)


def test_a_copy_of_a_pool_would_be_seen():
    def careless(query, key, value, k_pool, *rest):
        return site(query, key, value, k_pool.clone(), *rest)

    torch._dynamo.reset()
    example = Pass()
    _, (code,) = run_and_get_code(run, torch.compile(careless, backend="inductor", fullgraph=True), example.inputs())
    assert copies(code, example.pool.k)


def copies(code, pool):
    """Where generated code makes a tensor as large as a pool, in whatever shape, or calls an operator that copies."""
    made = re.findall(r"empty_strided\w*\(\((\d+(?:, \d+)*)", code)
    large = [size for size in made if math.prod(map(int, size.split(", "))) >= pool.numel()]
    return large + re.findall(r"\w+\.clone\b.*", code)
