"""FlashAttention's operators: found and rebuilt, rewritten and launched; SageAttention's refused by name."""

from functools import partial

import pytest
import torch

from headforce.kvpass.layers import viewed
from headforce.policy import Policy
from headforce.testing import zoo

from .flash_operators import flash, flash_packed, flash_three, sage
from .test_refusals import report
from .test_zoo import rollout

FOUND = {"dense": flash, "packed": flash_packed, "third": flash_three}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("core", FOUND)
def test_found_in_every_graph(core, batch):
    recorder = rollout(zoo.SelfAttention(core=FOUND[core]), chunks=2, batch=batch, passes=1)
    site = recorder.site
    assert (site.heads, site.head_dim, site.mask.kind, site.layout) == (4, 12, "none", ("batch", "seq", "head", "dim"))
    assert site.folded == (0 if core == "packed" else None)


def test_grouped_heads():
    layer = zoo.SelfAttention(core="sdpa_gqa")
    layer.core = flash
    assert (rollout(layer, chunks=1, passes=1).site.kv_heads) == 2


@pytest.mark.parametrize("core", FOUND)
def test_rewritten_and_equal(core):
    """View mode: every pass launches ragged attention, the operator is gone, and the result is eager's."""
    layer = zoo.SelfAttention(core=FOUND[core])
    seen = []

    def inner(module, examples):
        seen.append([str(node.target) for node in module.graph.nodes])
        return module.forward

    torch._dynamo.register_backend(inner, f"headforce_test_{core}")
    options = {"policy": Policy({}), "inner": f"headforce_test_{core}"}
    compiled = torch.compile(layer, backend="headforce", options=options, fullgraph=True)
    viewed.clear()
    ours, theirs = layer.new_cache(2), layer.new_cache(2)
    with torch.no_grad():
        for x, start in zoo.inputs(2, batch=2, passes=1):
            torch.testing.assert_close(compiled(x, ours, start), layer(x, theirs, start), rtol=1e-5, atol=1e-5)
    assert sum(layer.launches for layer in viewed.values()) == 2
    assert all("headforce.ragged_attention.default" in s and not any("flash" in t for t in s) for s in seen)


MASKS = {
    "causal": partial(flash, causal=True),
    "sliding_window": partial(flash, window=(6, 0)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_the_class_of_a_mask(kind):
    (site,) = report(zoo.SelfAttention(core=MASKS[kind])).found
    assert (site.mask.kind, site.mask.block) == (kind, {"sliding_window": 7}.get(kind))


LENGTHS = torch.tensor([12], dtype=torch.int32)


def slopes(q, k, v):
    return flash(q, k, v, slopes=torch.ones(q.shape[2]))


def padded(q, k, v):
    return flash_packed(q, k, v, leftpad_k=torch.zeros(1, dtype=torch.int32))


def lengths_from_outside(q, k, v):
    return flash_packed(q, k, v, lengths=LENGTHS)


def two_lengths(q, k, v):
    """One batch row, packed as two sequences of different lengths."""
    bounds = [torch.tensor([0, 5, x.shape[1]], dtype=torch.int32) for x in (q, k)]
    op = torch.ops.flash_attn._flash_attn_varlen_forward
    return op(*(x.flatten(0, 1) for x in (q, k, v)), *bounds, 12, 24, 0.0, 0.25, False)[0][None]


def two_sequences(q, k, v):
    """One batch row, packed as two sequences of one length: the halves do not see each other."""
    bounds = [torch.arange(0, x.shape[1] + 1, x.shape[1] // 2, dtype=torch.int32) for x in (q, k)]
    op = torch.ops.flash_attn._flash_attn_varlen_forward
    return op(*(x.flatten(0, 1) for x in (q, k, v)), *bounds, 12, 24, 0.0, 0.25, False)[0][None]


def weighted_by_the_sum(q, k, v):
    out, lse, *_ = torch.ops.flash_attn._flash_attn_forward(q, k, v, 0.0, 0.25, False, -1, -1, 0.0, None, False)
    return out * lse[..., None].sigmoid()


REFUSED = {
    "HF-SCOREMOD": [partial(flash, softcap=30.0), slopes],
    "HF-MASK": [partial(flash, window=(6, 6))],
    "HF-LAYOUT": [lengths_from_outside, two_lengths],
    "HF-CACHE-FORM": [two_sequences],
    "HF-ESCAPE": [weighted_by_the_sum],
    "HF-ATTENTION-FORM": [sage, padded, partial(flash_three, attention_chunk=8)],
}


@pytest.mark.parametrize(("code", "core"), [(code, core) for code, cores in REFUSED.items() for core in cores])
def test_what_is_refused(code, core):
    only = report(zoo.SelfAttention(core=core))
    assert only.found == ()
    assert [r.code for r in only.refused] == [code], only.refused


def test_an_unknown_operator_is_named():
    (refusal,) = report(zoo.SelfAttention(core=sage)).refused
    assert "mylib::sageattn" in refusal.found
