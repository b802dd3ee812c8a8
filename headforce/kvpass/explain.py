"""`headforce.explain`: what headforce sees in one call of a model, and what a policy would make of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from ..errors import HeadforceError
from ..lowering.footprint import footprint
from ..lowering.plan import ChunkPlan
from ..lowering.preview import preview
from ..policy import FrameSet, Policy, Rule, Schedule, parse_rule
from ..policy.chunk import Chunk
from ..presets import read_policy
from .capture import Adapter, find_adapter
from .eligible import check_ownable, check_viewable
from .explanation import ClassLine, Explanation, Outlook, SiteFacts
from .find import find_sites
from .layers import PassFacts
from .session import Session, session_of
from .shell import is_shell, make_shell
from .site import Site, SiteReport
from .site_reader import SiteReader
from .view_plans import check_view, view_rule

EVICTIONS = 2
"""How often the model's cache evicts in the stream that an outlook is about."""


def explain(model: nn.Module, *args: Any, policy: Policy | str | None = None, **kwargs: Any) -> Explanation:
    """What headforce finds in `model(*args, **kwargs)`: every attention call, its cache, its RoPE, and every refusal.

    The model runs once, without being rewritten, on copies of the arguments, so caches that are passed to it are left
    alone. A model that keeps its cache in itself is changed as by any other call.

    Args:
        model: any model, compiled or not, prepared or not. args, kwargs: the arguments of one call, caches included.
        policy: a policy, the path of a file or the name of a preset, to see what it would keep, hold and compute. A
            prepared model has one.

    Returns an `Explanation`: print it, or take its `to_json()`. A policy that does not fit the model raises.
    """
    model = getattr(model, "_orig_mod", model)
    session = session_of(model)
    own = session.policy if session is not None else None
    given = own if policy is None else read_policy(policy)
    args, kwargs = copy.deepcopy((args, kwargs), _shells(session, model, args, kwargs))
    recorder = _Recorder()
    breaks = dict(_graph_breaks())
    with _traceable(model, session, args, kwargs) as adapter:
        torch.compile(model, backend=recorder)(*args, **kwargs)
    sites = [line for graph in range(len(recorder.reports)) for line in recorder.lines(graph)]
    found = [facts for graph in recorder.facts for facts in graph]
    outlook = None
    if given is not None and found and found[0][1].start >= 0:
        outlook = _outlook(given, found, adapter, model)
    return Explanation(
        model=type(model).__name__,
        family=None if adapter is None else adapter.name,
        prepared=None if session is None else session.mode,
        graphs=len(recorder.reports),
        breaks=tuple(reason for reason, count in _graph_breaks().items() if count > breaks.get(reason, 0)),
        sites=tuple(sites),
        outlook=outlook,
    )


def _shells(
    session: Session | None, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int, Any]:
    """A memo for `deepcopy` that exchanges shells for other shells: a real copy would take their full size."""
    caches = session.adapter.caches(model, args, kwargs) if session is not None else []
    tensors = [tensor for cache in caches for tensor in cache.tensors() if is_shell(tensor)]
    return {id(tensor): make_shell(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}


class _Recorder:
    """A backend that recognises, reads the numbers of every call, and runs the graph as it is."""

    def __init__(self) -> None:
        self.reports: list[SiteReport] = []
        self.facts: list[list[tuple[Site, PassFacts]]] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        report = find_sites(module, example_inputs)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        readers = [SiteReader(site, report, inputs) for site in report.found]
        facts: list[tuple[Site, PassFacts]] = []
        self.reports.append(report)
        self.facts.append(facts)

        def run(*args: Any) -> Any:
            facts.extend((reader.site, reader.facts(args)) for reader in readers)
            return module.forward(*args)

        return run

    def lines(self, graph: int) -> Iterator[SiteFacts]:
        """Every attention call of a graph; a site of a graph that ran for several layers, once for each."""
        report = self.reports[graph]
        for site, facts in self.facts[graph]:
            yield SiteFacts.of(graph, site, facts, _why_not(check_ownable, site), _why_not(check_viewable, site))
        for verdict, refusals in (("refused", report.refused), ("excluded", report.excluded)):
            for refusal in refusals:
                yield SiteFacts.no(graph, verdict, refusal)


def _why_not(check: Callable[..., None], *args: Any) -> str:
    try:
        check(*args)
    except HeadforceError as error:
        return f"[{error.code}] found {error.found}; needed {error.needed}"
    return ""


def _graph_breaks() -> Mapping[str, int]:
    return dict(torch._dynamo.utils.counters["graph_break"])


@contextlib.contextmanager
def _traceable(
    model: nn.Module, session: Session | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[Adapter | None]:
    """What its family needs to be traced is in place, and a session looks away."""
    with contextlib.ExitStack() as stack:
        adapter: Adapter | None = None
        if session is not None:
            adapter = session.adapter
            stack.enter_context(session.paused())
        else:
            with contextlib.suppress(HeadforceError):
                adapter = find_adapter(model)
            if adapter is not None:
                stack.enter_context(adapter.install(model))
        if adapter is not None:
            for cache in adapter.caches(model, args, kwargs):
                cache.replace(*cache.tensors())
            stack.enter_context(adapter.shims(model, args, kwargs))
        yield adapter


def _outlook(
    policy: Policy, found: Sequence[tuple[Site, PassFacts]], adapter: Adapter | None, model: nn.Module
) -> Outlook:
    """What the policy makes of a stream of chunks like this call's, long enough for the cache to evict."""
    site, facts = found[0]
    native = _native(facts, adapter, model)
    bound = policy.bind(layers=len(found), heads=site.heads, native=native, tokens=facts.rows)
    warm = policy.warmup.chunks if policy.warmup else 0
    count = max(warm, -(-facts.cache_rows // facts.rows // facts.frames)) + EVICTIONS
    if policy.horizon is not None:
        count = max(1, min(count, policy.horizon // facts.frames))
    schedule = Schedule((facts.frames,) * count)
    frame_bytes = facts.batch * facts.rows * (site.head_dim + site.value_dim) * site.cache.dtype.itemsize
    size = footprint(bound, schedule, frame_bytes)
    plans = list(preview(bound, schedule))
    last = plans[-1]
    dense = len(native.frames(last.chunk, last.chunk.start)) + facts.frames
    reads = [[last.of(layer, head).kept for head in range(bound.heads)] for layer in range(bound.layers)]
    classes: dict[tuple[str | None, str], list[tuple[int, int]]] = {}
    for layer, row in enumerate(bound.rules):
        for head, rule in enumerate(row):
            classes.setdefault((bound.classes[layer][head], str(rule.rule)), []).append((layer, head))
    cells = bound.layers * bound.heads
    unviewed = _why_not(check_view, bound, Chunk(0, 0, facts.frames), facts)
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
        dense_bytes=size.dense_bytes,
        not_viewed=unviewed or _why_not(_check_kept, plans, native),
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
