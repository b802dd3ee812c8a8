"""FlexAttention, the higher-order operator that Dynamo writes for `torch.nn.attention.flex_attention`.

Accepted, with operands [B, H, S, D]:

    flex_attention(q, k, v)                                                   # also scale=s, enable_gqa=True
    flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score * 0.5)  # the score itself, or a constant times it
    flex_attention(q, k, v, block_mask=create_block_mask(f, None, None, q_len, kv_len))

A block mask is evaluated: `f` at every place of its static lengths, and the tables of blocks, which the graph has to
make from constants. Its class is that of the dense mask, as in `mask.py`. Blocks and `f` must say the same: eager code
reads `f` alone and kernels skip blocks. Where every block is listed and `f` hides nothing, lengths may be symbolic.

Counter-examples: a score_mod that does anything else (HF-SCOREMOD); `f` or the blocks computed from a graph input, such
as a mask that was made outside the graph, and blocks that do not match `f` (HF-MASK); a log-sum-exp that is used
(HF-ESCAPE). Padded keys count like others: a mask that hides them is not "all_true".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..constants import constant, uniform
from ..graph_view import GraphView
from ..normal_form import LABELS, Cursor, walk
from ..ops import op_name
from ..site import Mask
from ..symbolic import to_number
from ..torch_private import is_higher_order, real_tensors
from .attention import operands, scale_of
from .base import AttentionCall, Refused, recognizer
from .mask import MAX_ELEMENTS, classify, hides_nothing


@dataclass(frozen=True)
class BlockMask:
    """The mask of a call of flex_attention: `function` says which places are read, `blocks` is the operator's tuple."""

    call: Node
    function: GraphModule
    blocks: tuple[Any, ...]
    captured: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"of {self.call.name}"


@recognizer("attention", order=30)
def flex_attention(view: GraphView, node: Node) -> AttentionCall | None:
    """Recognise the operator; its first result is the attention."""
    if node.op != "call_function" or not is_higher_order(node.target) or node.target.name() != "flex_attention":
        return None
    query, key, value, score, blocks, scale, _, score_captured, mask_captured = node.args
    results = [user for user in view.users(node) if op_name(user) == "getitem" and user.args[1] == 0]
    if len(results) != 1 or results != view.users(node):
        raise Refused("HF-ESCAPE", f"{node.name} read for more than its output", "a call whose output alone is used")
    q, k, v = operands(view, (query, key, value), LABELS)
    return AttentionCall(
        node=results[0],
        layout=LABELS,
        q=q,
        k=k,
        v=v,
        scale=scale_of(view, scale, q) * _factor(view, score, score_captured),
        mask=BlockMask(node, _function(view, blocks[-1]), blocks, mask_captured),
        operator=node,
    )


@recognizer("mask", order=5)
def block_mask(view: GraphView, call: AttentionCall) -> Mask | None:
    """The class of a block mask, or None if it is not proved."""
    if not isinstance(call.mask, BlockMask):
        return None
    mask = call.mask
    q_block, kv_block = (to_number(size) for size in mask.blocks[-3:-1])
    listed = _listed(view, mask)
    if listed is None or q_block is None or kv_block is None:
        return None
    partial, _ = listed
    inner = GraphView(mask.function)
    if bool(partial.all()) and hides_nothing(uniform(inner, next(iter(inner.graph.find_nodes(op="output"))).args[0])):
        return Mask("none" if partial.numel() == 1 else "all_true")
    dense = _dense(view, call, mask)
    if dense is None:
        return None
    rows, keys = (torch.arange(n) // int(size) for n, size in zip(dense.shape[-2:], (q_block, kv_block), strict=True))
    partial, full = (table[..., rows, :][..., keys] for table in listed)
    read = (partial & dense) | full
    return classify(dense) if torch.equal(read, dense.expand(read.shape)) else None


def _function(view: GraphView, node: Node) -> GraphModule:
    function = view.module.get_submodule(str(node.target))
    assert isinstance(function, GraphModule)
    return function


def _factor(view: GraphView, score: Node, captured: tuple[Any, ...]) -> float:
    """What a score_mod multiplies scores with."""
    inner = GraphView(_function(view, score))
    (result,) = (n.args[0] for n in inner.graph.find_nodes(op="output"))
    given = inner.placeholders[0]
    if isinstance(result, Node) and inner.shape(result) == () and not captured:
        *_, last = walk(Cursor(result, ()), inner, factors=True)
        if last.node is given and last.lossless(inner) and inner.dtype(result) == inner.dtype(given):
            return last.factor
    raise Refused("HF-SCOREMOD", "a score_mod that is more than a constant factor", "no score_mod")


def _listed(view: GraphView, mask: BlockMask) -> tuple[Tensor, Tensor] | None:
    """Which blocks are read where `f` says so, and which are read whole: bool [B, H, query blocks, key blocks]."""
    tables = []
    for count, index in (mask.blocks[2:4], mask.blocks[4:6]):
        if count is None or index is None:
            tables.append(torch.zeros_like(tables[0]))
            continue
        number, where = constant(view, count, mask.call), constant(view, index, mask.call)
        if not isinstance(number, Tensor) or not isinstance(where, Tensor):
            return None
        taken = torch.arange(where.shape[-1]) < number[..., None]
        table = torch.zeros((*where.shape[:-1], where.shape[-1] + 1), dtype=torch.bool)
        table.scatter_(-1, torch.where(taken, where, where.shape[-1]).long(), True)
        tables.append(table[..., :-1])
    return tables[0], tables[1]


def _dense(view: GraphView, call: AttentionCall, mask: BlockMask) -> Tensor | None:
    """`f` at every place, bool [B, H, queries, keys]; 1 in place of B and H where `f` does not look at them."""
    inner = GraphView(mask.function)
    shape, keys = view.shape(call.q.node), view.shape(call.k.node)
    sizes = [
        size if place.users else 1
        for place, size in zip(inner.placeholders, (shape[0], shape[1], None, None), strict=False)
    ]
    sizes[2:4] = [shape[2], keys[2]]
    captured = [constant(view, node, mask.call) for node in mask.captured]
    if any(value is None for value in captured) or not all(getattr(s, "is_Integer", s == 1) for s in sizes):
        return None
    counts = [int(size) for size in sizes]
    if counts[0] * counts[1] * counts[2] * counts[3] > MAX_ELEMENTS:
        return None
    function: Any = mask.function
    with real_tensors(), torch.no_grad():
        places = [torch.arange(count, dtype=torch.int32) for count in counts]
        for axis in (3, 2, 1, 0):
            over = tuple(0 if i == axis else None for i in range(4))
            function = torch.vmap(function, (*over, *(None for _ in captured)))
        try:
            result = function(*places, *captured)
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None
    return result if isinstance(result, Tensor) and result.dtype == torch.bool else None
