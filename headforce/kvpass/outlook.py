"""What a policy makes of a stream of calls like one that was seen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import HeadforceError
from ..lowering.footprint import footprint
from ..lowering.plan import ChunkPlan
from ..lowering.preview import preview
from ..policy import FrameSet, Policy, Rule, Schedule, parse_rule
from ..policy.chunk import Chunk
from .capture import Adapter
from .explanation import ClassLine, Outlook
from .layers import PassFacts
from .observer import Ran, why_not
from .view_plans import check_view, view_rule

EVICTIONS = 2
"""How often the model's cache evicts in the stream that an outlook is about."""


def outlook(policy: Policy, ran: Sequence[Ran], adapter: Adapter | None, model: nn.Module) -> Outlook | None:
    """What the policy makes of a stream of chunks like this call's, long enough for the cache to evict.

    Args:
        ran: the sites of one call, layer by layer. None comes back if there are none, or none that shows its frame.

    Raises whatever says that the policy does not fit the model.
    """
    if not ran or ran[0].facts.start < 0:
        return None
    _, site, facts = ran[0]
    native = _native(facts, adapter, model)
    bound = policy.bind(layers=len(ran), heads=site.heads, native=native, tokens=facts.rows)
    warm = policy.warmup.chunks if policy.warmup else 0
    count = max(warm, -(-facts.cache_rows // facts.rows // facts.frames)) + EVICTIONS
    if policy.horizon is not None:
        count = max(1, min(count, policy.horizon // facts.frames))
    schedule = Schedule((facts.frames,) * count)
    frame_bytes = facts.batch * facts.rows * (site.head_dim + site.value_dim) * site.cache.dtype.itemsize
    share = site.heads // site.kv_heads
    owned = not why_not(bound.shared, share)  # else every query head would need pages of its own
    size = footprint(bound.shared(share) if owned else bound, schedule, frame_bytes)
    plans = list(preview(bound, schedule))
    last = plans[-1]
    dense = len(native.frames(last.chunk, last.chunk.start)) + facts.frames
    reads = [[last.of(layer, head).kept for head in range(bound.heads)] for layer in range(bound.layers)]
    classes: dict[tuple[str | None, str], list[tuple[int, int]]] = {}
    for layer, row in enumerate(bound.rules):
        for head, rule in enumerate(row):
            classes.setdefault((bound.classes[layer][head], str(rule.rule)), []).append((layer, head))
    cells = bound.layers * bound.heads
    unviewed = why_not(check_view, bound, Chunk(0, 0, facts.frames), facts)
    return Outlook(
        chunk=last.chunk.index,
        frames=facts.frames,
        native=str(native),
        native_kept=dense - facts.frames,
        classes=tuple(
            ClassLine(name, rule, len(heads), max(reads[layer][head] for layer, head in heads))
            for (name, rule), heads in classes.items()
        ),
        pool_bytes=size.pool_bytes,
        dense_bytes=size.dense_bytes if owned else size.dense_bytes // share,
        not_viewed=unviewed or why_not(_check_kept, plans, native),
        flops=sum(kept + facts.frames for row in reads for kept in row) / (cells * dense),
    )


def _check_kept(plans: Sequence[ChunkPlan], native: Rule) -> None:
    """HF-EVICTED if a plan reads what a model with the rule `native` does not read there."""
    for plan in plans:
        read = FrameSet.of(int(f) for head in plan.heads for reading in head.readings for f in reading.frames[:, 0])
        missing = read - native.frames(plan.chunk, plan.chunk.start)
        if missing:
            raise HeadforceError(
                "HF-EVICTED", found=f"frames {missing} read at frame {plan.chunk.start}", needed=f"frames of {native}"
            )


def _native(facts: PassFacts, adapter: Adapter | None, model: nn.Module) -> Rule:
    if adapter is not None:
        return adapter.native(model, facts.cache_rows, facts.rows)
    if facts.read_rows // facts.rows < facts.start + facts.frames:
        return parse_rule(f"span({facts.read_rows // facts.rows})")
    chunk = Chunk(0, facts.start, facts.frames)
    return view_rule(FrameSet.interval(0, facts.start), chunk, facts.cache_rows // facts.rows)
