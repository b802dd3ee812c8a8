"""Tensors that change through a view: whatever hands out the view, what it was taken of counts as changed.

Masks that are no longer what they were made as, and queries that attention no longer reads as a layer left them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headforce.kvpass.graph_view import GraphView
from headforce.testing import zoo
from headforce.testing.recording import Recorder

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "data": lambda x: x.data,
    "cpu": lambda x: x.cpu(),
    "same dtype": lambda x: x.bool() if x.dtype == torch.bool else x.float(),
    "positive": lambda x: x if x.dtype == torch.bool else +x,
    "conj": torch.conj,
    "resolve_conj": lambda x: x.resolve_conj(),
    "resolve_neg": lambda x: x.resolve_neg(),
    "adjoint": lambda x: torch.adjoint(x).mT,
    "swapdims": lambda x: x.swapdims(-1, -2).swapaxes(-1, -2),
    "mT": lambda x: x.mT.mT,
    "mH": lambda x: x.mH.mT,
    "atleast_2d": torch.atleast_2d,
    "atleast_3d": torch.atleast_3d,
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x)[1],
    "hsplit": lambda x: torch.hsplit(x, [2])[0],
    "vsplit": lambda x: torch.vsplit(x, [1])[0],
    "tensor_split": lambda x: torch.tensor_split(x, [2], dim=1)[0],
    "unsafe_chunk": lambda x: x.unsafe_chunk(1, 0)[0],
    "unsafe_split": lambda x: torch.unsafe_split(x, 1)[0],
    "another dtype": lambda x: x.view(torch.uint8 if x.dtype == torch.bool else torch.int32),
    "einsum": lambda x: torch.einsum("...->...", x),
    "no dropout": lambda x: F.dropout(x, 0.5, training=False),
}


def refusals(core: Callable[..., Tensor]) -> list[str]:
    """The codes for one pass of a layer."""
    layer, recorder = zoo.SelfAttention(core=core), Recorder()
    x, start = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(layer, backend=recorder, fullgraph=True)(x, layer.new_cache(), start)
    return recorder.codes


def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@pytest.mark.parametrize("name", VIEWS)
def test_a_mask_is_not_what_it_was(name: str) -> None:
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        part = VIEWS[name](mask)
        part.zero_()
        return masked(q, k, v, mask | (torch.arange(k.shape[1]) < 0))

    assert refusals(core) == ["HF-MASK"]


def test_a_mask_that_only_its_data_changes() -> None:
    """The most ordinary way."""

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        mask.data[:, :3] = False
        return masked(q, k, v, mask)

    assert refusals(core) == ["HF-MASK"]


@pytest.mark.parametrize("change", ["and", "out", "outs", "method", "keyword"])
def test_every_way_to_change_a_mask(change: str) -> None:
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(q.shape[1], k.shape[1])
        kept = mask.bool() if change == "and" else mask
        other, late = kept, torch.arange(k.shape[1]) > 2
        if change == "and":
            other &= late
            return masked(q, k, v, kept)
        if change == "out":
            torch.mul(mask, 0.0, out=mask)[:, :3] = -torch.inf
        elif change == "outs":
            torch.frexp(mask, out=(mask, torch.empty(mask.shape, dtype=torch.int32)))
        elif change == "method":
            mask.__imul__(late)
        else:
            torch.relu_(input=mask.neg_())
        return masked(q, k, v, mask == 1)

    assert refusals(core) == ["HF-MASK"]


@pytest.mark.parametrize("name", VIEWS)
def test_a_copy_of_a_query_that_changes_afterwards(name: str) -> None:
    """The copy holds what the query was: the query that RoPE made is not what attention reads."""

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept = q.clone()
        VIEWS[name](q).mul_(2)
        return zoo.sdpa(kept, k, v)

    layer, found = zoo.SelfAttention(core=core), []

    def backend(module: torch.fx.GraphModule, examples: list) -> Callable:
        view = GraphView(module, examples)
        found.extend(n for n in view.nodes if n.target == "clone" and view.written_after(n.args[0]))
        return module.forward

    x, start = next(zoo.inputs(1))
    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(x, layer.new_cache(), start)
    assert len(found) == 1


def test_what_makes_new_memory_changes_nothing_else() -> None:
    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept = q.clone()
        for made in (q + 1, q.double(), q.softmax(-1), F.silu(q), q[..., :1].expand_as(q).contiguous(), torch.cat([q])):
            made.mul_(2)
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        mask.to(torch.int32)[:, :3] = 0
        return masked(kept, k, v, mask & mask)

    assert refusals(core) == []
