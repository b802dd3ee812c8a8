"""K/V heads that several query heads read (GQA), owned: one region of pages for all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import headforce
from examples.causal_wan import Rollout
from examples.causal_wan.attention import SelfAttention
from examples.causal_wan.cache import append
from examples.causal_wan.rope import rope_angles, rotate
from headforce import HeadforceError
from headforce.policy import Policy

from .conftest import text, wan
from .oracle_model import OracleAttention, oracle_model
from .test_owned_identity import relative
from .test_owned_policy import TOLERANCE

pytestmark = pytest.mark.shares_graphs

SHARE = 2
POLICY = """
headforce: 1
classes:
  near: window(1)
  far: sink(1)@collapse(4) | window(2)
  none: drop()
  rhythm: sink(1) | episodic(1, write=novel(0.9)) | window(1)
default: near
heads: {0: {far: [0, 1]}, 1: {none: [0, 1], rhythm: [2, 3]}}
"""


class Shared(SelfAttention):
    """Every `SHARE`-th head of K and V is kept, and read by as many query heads."""

    spelling = "operator"

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().key_value(x)
        return k[:, :, ::SHARE], v[:, :, ::SHARE]

    def forward(self, x, rope, grid, kv_cache, current_start):  # type: ignore[no-untyped-def]
        tokens = grid[1] * grid[2]
        cos, sin = rope_angles(rope, current_start // tokens, grid)
        q, (k, v) = rotate(self.query(x), cos, sin), self.key_value(x)
        sink = self.sink_size * tokens
        end = append(kv_cache, rotate(k, cos, sin), v, current_start, windowed=self.windowed, sink_tokens=sink)
        begin = max(0, end - self.window * tokens)
        k, v = (kv_cache[name][:, begin:end] for name in ("k", "v"))
        if self.spelling == "repeated":
            k, v = (t.repeat_interleave(SHARE, dim=2) for t in (k, v))
        operands = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(*operands, enable_gqa=self.spelling == "operator")
        return self.o(y.transpose(1, 2).flatten(2))


class SharedOracle(OracleAttention):
    """The same with K and V of every query head."""

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().key_value(x)
        return tuple(t[:, :, ::SHARE].repeat_interleave(SHARE, dim=2) for t in (k, v))  # type: ignore[return-value]


def with_attention(model: torch.nn.Module, kind: type) -> torch.nn.Module:
    for block in model.blocks:  # type: ignore[union-attr]
        block.self_attn.__class__ = kind
    return model


class SharedRollout(Rollout):
    """Caches with as many heads as K and V have."""

    def _prepare_caches(self, context: Tensor) -> None:
        fresh = self.kv_cache is None
        super()._prepare_caches(context)
        for cache in self.kv_cache if fresh else ():
            cache.update({name: cache[name][:, :, ::SHARE].clone() for name in ("k", "v")})


def video(model: torch.nn.Module, chunks: int = 5) -> Tensor:
    return SharedRollout(model, model.config, (1000.0,)).generate(text(model.config), [3] * chunks)


@pytest.mark.parametrize(
    ("spelling", "target"),
    [
        ("operator", "sdpa"),
        pytest.param("repeated", "sdpa", marks=pytest.mark.slow),
        pytest.param("operator", "reference", marks=pytest.mark.slow),
    ],
)
def test_heads_that_share_keys_read_what_the_oracle_says(spelling: str, target: str) -> None:
    policy, model = Policy.loads(POLICY.replace("episodic(1, write=novel(0.9)) | ", "")), wan(num_layers=2)
    twins = [oracle_model(model, policy, change) for change in (None, lambda head, read: {} if head == 1 else read)]
    wanted, falsified = (Rollout(with_attention(twin, SharedOracle), model.config, (1000.0,)) for twin in twins)
    expected, wrong = (rollout.generate(text(model.config), [3] * 5) for rollout in (wanted, falsified))
    with_attention(model, Shared)
    for block in model.blocks:
        block.self_attn.spelling = spelling
    with headforce.prepare(model, policy, verify="full") as session:
        session.compile(inner="eager", target=target)
        ours = video(model)
        pool = session.cache_sets[0].pool
        assert pool.regions.base.shape == (2, 1, model.config.num_heads // SHARE)
        assert session.report.count("refused") == 0
    assert relative(ours, expected) < TOLERANCE
    assert relative(wrong, expected) > 10 * TOLERANCE


def test_under_native_the_model_is_as_it_was() -> None:
    model = with_attention(wan(), Shared)
    eager = video(model)
    with headforce.prepare(model, Policy({}), canonical_order=True, verify="plan") as session:
        session.compile(inner="eager")
        assert torch.equal(video(model), eager)
        assert session.launches == [10]


def test_stores_that_look_at_keys_decide_for_all_that_share_them() -> None:
    model = with_attention(wan(num_layers=2), Shared)
    with headforce.prepare(model, Policy.loads(POLICY), verify="full") as session:
        session.compile(inner="eager")
        video(model)
        assert session.launches == [10, 10]


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("classes: {a: window(1), b: sink(1)}\ndefault: a\nheads: {0: {b: [1]}}", r"heads 0 and 1, which share"),
        (
            "classes: {a: 'select(1, segments=4, source=evicted(r), score=qk) | window(1) as r'}\ndefault: a",
            "decides from queries, and 2 query heads",
        ),
    ],
)
def test_what_heads_that_share_keys_cannot_have_is_refused(policy: str, found: str) -> None:
    model = with_attention(wan(), Shared)
    with headforce.prepare(model, Policy.loads(f"headforce: 1\n{policy}")) as session:
        session.compile(inner="eager")
        with pytest.raises(HeadforceError, match=f"HF-OWNED.*{found}"):
            video(model)
