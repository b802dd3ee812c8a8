"""Passes that fill a cache and attend to their own rows, whatever the mask: recognised, owned and viewed."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import headforce
from examples.causal_wan import Rollout, allocate_crossattn_cache, allocate_kv_cache, reset_caches
from examples.causal_wan.attention import SelfAttention
from examples.causal_wan.rope import rope_angles, rotate
from headforce import HeadforceError
from headforce.kvpass.site import PREFILL
from headforce.policy import Policy
from headforce.testing import zoo
from headforce.testing.zoo import TOKENS

from .conftest import text, wan
from .oracle_model import OracleAttention, oracle_model
from .test_owned_identity import relative
from .test_owned_policy import TOLERANCE
from .test_refusals import report

pytestmark = pytest.mark.shares_graphs


def filling(k, v, cache, start):
    """Writes a cache that nothing reads in this pass."""
    n = k.shape[1]
    cache["k"][:, start : start + n] = k
    cache["v"][:, start : start + n] = v
    return k, v


def block_causal(q, k, v):
    """A mask over the frames of the pass."""
    frame = torch.arange(q.shape[1]) // TOKENS
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame).transpose(1, 2)


def padded_flex(q, k, v):
    """Rows made up to a multiple of 16, and a mask that hides what was added (Krea)."""
    rows, more = q.shape[1], -q.shape[1] % 16
    padded = [torch.cat([x, torch.zeros(x.shape[0], more, *x.shape[2:])], dim=1).transpose(1, 2) for x in (q, k, v)]
    mask = create_block_mask(lambda b, h, i, j: j < rows, None, None, rows + more, rows + more, "cpu", BLOCK_SIZE=16)
    return flex_attention(*padded, block_mask=mask)[:, :, :-more].transpose(1, 2)


@pytest.mark.parametrize("core", ["sdpa", block_causal, padded_flex])
def test_a_pass_that_reads_no_cache_is_a_prefill(core):
    only = report(zoo.SelfAttention(protocol=filling, core=core), start=0)
    (site,) = only.found
    assert (only.refused, only.excluded) == ((), ())
    assert (site.cache.kind, site.mask.kind) == (PREFILL, "kept")
    assert only.inputs[site.cache.k_input.name].endswith("['k']")
    assert len(site.cache.write_nodes) == 2
    assert (site.key.node, site.value.node) == (site.new_key.node, site.new_value.node)
    assert site.rope.query_start == site.rope.key_start == 0
    assert site.rope.tokens_per_frame == TOKENS


def other_values(k, v, cache, start):
    filling(k * 2, v, cache, start)
    return k, v


def some_rows(k, v, cache, start):
    filling(k[:, :TOKENS], v[:, :TOKENS], cache, start)
    return k, v


def read_besides(k, v, cache, start):
    filling(k, v, cache, start)
    cache["sum"] = cache["k"].sum()
    return k, v


def other_rows(k, v, cache, start):
    cache["k"][:, start : start + k.shape[1]] = k
    cache["v"][:, start + TOKENS : start + TOKENS + k.shape[1]] = v
    return k, v


@pytest.mark.parametrize(
    ("protocol", "code"),
    [
        (other_values, "HF-NOHISTORY"),
        (some_rows, "HF-NOHISTORY"),
        (read_besides, "HF-NOHISTORY"),
        (other_rows, "HF-KV-RANGE"),
    ],
)
def test_what_is_not_a_prefill_is_refused(protocol, code):
    only = report(zoo.SelfAttention(protocol=protocol), start=0)
    assert only.found == ()
    assert only.refused[0].code == code


def masked_fill(attention, x, rope, grid, kv_cache, start=0):
    """Fills a cache from row `start` on, and attends to the rows themselves under a mask over their frames."""
    cos, sin = rope_angles(rope, start // (grid[1] * grid[2]), grid)
    q, (k, v) = rotate(attention.query(x), cos, sin), attention.key_value(x)
    k = rotate(k, cos, sin)
    n = k.shape[1]
    kv_cache["k"][:, start : start + n] = k
    kv_cache["v"][:, start : start + n] = v
    kv_cache["global_end_index"] = kv_cache["local_end_index"] = start + n
    frame = torch.arange(n) // (grid[1] * grid[2])
    y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=frame[:, None] >= frame)
    return attention.o(y.transpose(1, 2).flatten(2))


class Filling(SelfAttention):
    def forward(self, x, rope, grid, kv_cache, current_start):
        if kv_cache["fill"]:
            return masked_fill(self, x, rope, grid, kv_cache)
        return super().forward(x, rope, grid, kv_cache, current_start)


class FillingOracle(OracleAttention):
    def forward(self, x, rope, grid, kv_cache, current_start):
        y = super().forward(x, rope, grid, kv_cache, current_start)
        return masked_fill(self, x, rope, grid, kv_cache) if kv_cache["fill"] else y


def with_attention(model, kind):
    for block in model.blocks:
        block.self_attn.__class__ = kind
    return model


def served(model, config, context: int = 3, blocks: int = 3) -> list[torch.Tensor]:
    """A server's loop: before every block but the first the cache is emptied and filled anew from frames that are kept,
    and the block stands right behind them. What each noisy pass gives."""
    kv_cache, crossattn_cache = allocate_kv_cache(config), allocate_crossattn_cache(config)
    outputs = []

    def run(seed: int, frames: int, start: int, fill: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, config.channels, frames, config.latent_height, config.latent_width, generator=generator)
        for cache in kv_cache:
            cache["fill"] = fill
        caches = {"kv_cache": kv_cache, "crossattn_cache": crossattn_cache}
        at = start * config.tokens_per_frame
        with torch.no_grad():
            outputs.append(model(x, torch.full((1, frames), 500.0), text(config), **caches, current_start=at))

    for block in range(blocks):
        reset_caches(kv_cache, crossattn_cache)
        start = min(context, 3 * block)
        if start:
            run(100 + block, start, 0, fill=True)
        for step in range(2):
            run(10 * block + step, 3, start, fill=False)
    return outputs


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_cache_filled_for_every_block_is_bitwise_under_native(mode):
    model = with_attention(wan(), Filling)
    eager = served(model, model.config)
    with headforce.prepare(model, Policy({}), mode=mode, canonical_order=True, verify="plan") as session:
        session.compile(inner="eager")
        ours = served(model, model.config)
        assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))
        assert set(session.launches) == {len(eager)}
        assert session.report.count("refused") == session.misses == 0
        assert session.report.graphs <= 5
    assert all(torch.equal(a, b) for a, b in zip(served(model, model.config), eager, strict=True))


class Blind(SelfAttention):
    """Writes every pass into the cache and reads none of them."""

    def forward(self, x, rope, grid, kv_cache, current_start):
        return masked_fill(self, x, rope, grid, kv_cache, current_start)


@pytest.mark.parametrize(("rule", "refused"), [("window(1)", True), ("drop()", False)])
def test_a_pass_behind_frame_0_that_reads_no_cache_is_refused_where_the_policy_reads_frames(rule, refused):
    model = with_attention(wan(num_layers=2), Blind)
    policy = Policy.loads(f"headforce: 0\nclasses: {{a: {rule}}}\ndefault: a")
    with headforce.prepare(model, policy) as session:
        session.compile(inner="eager")
        rollout = Rollout(model, model.config, (1000.0,))
        if refused:
            with pytest.raises(HeadforceError, match=r"HF-CACHE-FORM.*layer 0.*at frame 3.*reads frames 2"):
                rollout.generate(text(model.config), [3, 3])
        else:
            rollout.generate(text(model.config), [3, 3])
        assert session.launches == ([2, 2] if refused else [4, 4])


POLICY = """
headforce: 1
classes: {near: window(1), ends: sink(1) | window(1), none: drop()}
default: near
heads: {0: {ends: [0], none: [2]}, 1: {ends: [1]}}
"""


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_a_policy_is_about_the_frames_that_were_filled_in(mode):
    """And a frame that one head misses shows."""
    policy, model = Policy.loads(POLICY), wan(num_layers=2)
    twins = [oracle_model(model, policy, change) for change in (None, lambda head, read: {} if head == 1 else read)]
    wanted, falsified = (served(with_attention(twin, FillingOracle), model.config, blocks=2) for twin in twins)
    with_attention(model, Filling)
    with headforce.prepare(model, policy, mode=mode, verify="plan") as session:
        session.compile(inner="eager")
        ours = served(model, model.config, blocks=2)
    errors = [relative(a, b) for a, b in zip(ours, wanted, strict=True)]
    assert max(errors) < TOLERANCE
    assert max(relative(a, b) for a, b in zip(falsified, wanted, strict=True)) > 10 * TOLERANCE
