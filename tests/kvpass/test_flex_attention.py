"""FlexAttention: found with the class of its mask, rewritten where it hides nothing, refused by name otherwise."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from headforce.kvpass.layers import viewed
from headforce.policy import Policy
from headforce.testing import zoo
from headforce.testing.zoo import TOKENS

from .test_refusals import report
from .test_zoo import rollout

Q, KV = zoo.CHUNK_FRAMES * TOKENS, 4 * TOKENS  # what `report` sends and reads: two frames of history, two new ones


def flex(q, k, v, **options):
    return flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def masked(allowed, blocks=8, **options):
    """A core with a block mask that is made in the graph."""

    def core(q, k, v):
        mask = create_block_mask(allowed, None, None, q.shape[1], k.shape[1], device="cpu", BLOCK_SIZE=blocks)
        return flex(q, k, v, block_mask=mask, **options)

    return core


def plain(q, k, v):
    return flex(q, k, v)


def halved(q, k, v):
    return flex(q, k, v, score_mod=lambda score, b, h, i, j: score * 0.5, scale=0.5)


FOUND = {
    "none": [plain, halved],
    "all_true": [masked(lambda b, h, i, j: (i >= 0) & (j < 10_000), blocks=128)],
    "causal": [masked(lambda b, h, i, j: j <= i + KV - Q)],
    "block_causal": [masked(lambda b, h, i, j: j // TOKENS <= (i + KV - Q) // TOKENS)],
    "sliding_window": [masked(lambda b, h, i, j: (j <= i + KV - Q) & (j > i + KV - Q - 7))],
}


@pytest.mark.parametrize(("kind", "core"), [(kind, core) for kind, cores in FOUND.items() for core in cores])
def test_the_class_of_a_mask(kind, core):
    only = report(zoo.SelfAttention(core=core))
    assert [site.mask.kind for site in only.found] == [kind], only.refused
    window = {"block_causal": TOKENS, "sliding_window": 7}
    assert only.found[0].mask.block == window.get(kind)


def test_found_in_every_graph():
    """Operands and scale rebuild what the graph computes; lengths are symbolic from the second chunk on."""
    recorder = rollout(zoo.SelfAttention(core=halved), chunks=2, passes=1)
    assert recorder.site.scale == pytest.approx(0.25)


def test_rewritten_and_equal():
    """View mode with `native()`: launched in every pass, bitwise equal to eager, and the operator is gone."""
    layer = zoo.SelfAttention(core=halved)
    seen = []

    def inner(module, examples):
        seen.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    torch._dynamo.register_backend(inner, "headforce_test_flex")
    options = {"policy": Policy({}), "inner": "headforce_test_flex"}
    compiled = torch.compile(layer, backend="headforce", options=options, fullgraph=True)
    caches = [layer.new_cache() for _ in range(2)]
    caches[1]["k"].copy_(caches[0]["k"]), caches[1]["v"].copy_(caches[0]["v"])
    with torch.no_grad():
        for x, start in zoo.inputs(2, passes=1):
            torch.testing.assert_close(compiled(x, caches[0], start), layer(x, caches[1], start), rtol=1e-5, atol=1e-5)
    assert sum(watched.launches for watched in viewed.values()) == 2
    assert all("headforce.ragged_attention.default" in targets and "flex_attention" not in targets for targets in seen)


def test_captured_constants_and_heads():
    """A mask that looks at a table built in the graph, and at heads in the same way."""

    def core(q, k, v):
        ends = torch.full((q.shape[1],), k.shape[1]) + torch.arange(q.shape[1])
        return masked(lambda b, h, i, j: (j < ends[i]) | (h < 0))(q, k, v)

    only = report(zoo.SelfAttention(core=core))
    assert [site.mask.kind for site in only.found] == ["all_true"], only.refused


# Counter-examples.


def biased(q, k, v):
    return flex(q, k, v, score_mod=lambda score, b, h, i, j: score + 0.1 * (i - j))


def masked_by_score(q, k, v):
    return flex(q, k, v, score_mod=lambda score, b, h, i, j: torch.where(i >= j, score, -torch.inf))


def from_data(q, k, v):
    strong = q.mean((0, 2, 3)) > 0
    return masked(lambda b, h, i, j: strong[i] | (j >= 0))(q, k, v)


def other_blocks(q, k, v):
    """Kernels would skip what these blocks leave out; `f` says that everything is read."""
    count, index = torch.ones(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 2, dtype=torch.int32)
    lengths = (q.shape[1], k.shape[1])
    return flex(q, k, v, block_mask=BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=(12, 12), seq_lengths=lengths))


def with_the_sum(q, k, v):
    out, lse = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), return_lse=True)
    return (out * lse[..., None]).transpose(1, 2)


REFUSED = {
    "HF-SCOREMOD": [biased, masked_by_score],
    "HF-MASK": [
        from_data,
        other_blocks,
        masked(lambda b, h, i, j: j < KV - 3),  # hides keys at the end, as a mask of padding does
        masked(lambda b, h, i, j: (h > 1) | (j <= i + KV - Q)),  # differs between heads
    ],
    "HF-ESCAPE": [with_the_sum],
}


@pytest.mark.parametrize(("code", "core"), [(code, core) for code, cores in REFUSED.items() for core in cores])
def test_what_is_refused(code, core):
    only = report(zoo.SelfAttention(core=core))
    assert only.found == ()
    assert [r.code for r in only.refused] == [code], only.refused


def test_a_mask_from_outside_the_graph_is_refused():
    mask = create_block_mask(lambda b, h, i, j: j >= 0, None, None, Q, KV, device="cpu", BLOCK_SIZE=8)
    only = report(zoo.SelfAttention(core=lambda q, k, v: flex(q, k, v, block_mask=mask)))
    assert [r.code for r in only.refused] == ["HF-MASK"]
