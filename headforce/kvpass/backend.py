"""The backend behind `torch.compile(model, backend="headforce")`.

It recognises the attention of a graph and returns a `SiteGraph`, which runs it with whatever caches it is given. State
lives outside the graph, which is a function of tensors; refusals are raised by the callable that is returned, where
nothing swallows them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..errors import HeadforceError
from .eligible import viewable
from .find import find_sites
from .inner import compile_inner
from .layers import PLAIN, VIEW
from .notes import Notes
from .ops import live_nodes
from .options import Options, read_options
from .report import Report
from .running import active_session, recording_refusals
from .site import SiteReport
from .site_graph import SiteGraph, check_refused
from .torch_private import own_copy

if TYPE_CHECKING:
    from .session import Session

log = logging.getLogger("headforce")

UNPREPARED = Report()
"""What was seen in the graphs of models that were not prepared."""


def headforce_backend(
    module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compiles one graph that Dynamo captured. `mode` and `options` are those of `torch.compile`."""
    session = active_session()
    try:
        settings = read_options(mode, options)
        _check_policy(session, settings)
        _check_cudagraphs(session, settings)
        copied = own_copy(module)
        _erase_dead(copied)
        report = find_sites(copied, example_inputs)
        variant = PLAIN if settings.policy is None else VIEW
        if session is not None:
            variant = session.variant
        if variant == VIEW:
            report = viewable(report)
        notes = Notes(copied, report, "unchanged" if variant == PLAIN else "rewritten")
        if variant != PLAIN:
            _check_refused(report, settings, session)
            _check_gradients(example_inputs, report)
        if session is None:
            _note(report, variant)
        if not report.found:
            compiled = compile_inner(copied, example_inputs, settings)
            return _checked(compiled, report, settings) if report.refused and variant == PLAIN else compiled
        return SiteGraph(copied, example_inputs, settings, report, variant, notes)
    except HeadforceError as error:
        return _refusing(error)


def _erase_dead(module: GraphModule) -> None:
    """Erases what nothing depends on; a cache that only such nodes read is read by nobody."""
    live = live_nodes(module.graph)
    for node in reversed(list(module.graph.nodes)):
        if node not in live:
            module.graph.erase_node(node)
    module.recompile()


def _check_policy(session: Session | None, settings: Options) -> None:
    if session is not None and settings.policy is not None and settings.policy != session.policy:
        raise HeadforceError(
            "HF-OPTION",
            site="policy",
            found="a policy in the options that is not the one given to prepare()",
            needed="one policy; leave it out of the options of a prepared model",
        )


def _check_cudagraphs(session: Session | None, settings: Options) -> None:
    if settings.cudagraphs and session is None:
        raise HeadforceError(
            "HF-CUDAGRAPHS",
            site="cudagraphs",
            found="a model that was not prepared" if settings.policy is None else "view mode",
            needed="a model prepared in owned mode",
        )


def _check_refused(report: SiteReport, settings: Options, session: Session | None) -> None:
    """Raises for a refused site; `prepare` may have made another graph of a model that was not prepared."""
    try:
        check_refused(report, settings)
    except HeadforceError as error:
        if session is None and "prepare" not in error.hint:
            error.hint += (
                " For a model of a known family (docs/models.md), headforce.prepare(model, policy=...) comes first: it "
                "replaces what ends graphs."
            )
        raise


def _check_gradients(example_inputs: Sequence[Any], report: SiteReport) -> None:
    recorded = torch.is_grad_enabled() and any(isinstance(e, Tensor) and e.requires_grad for e in example_inputs)
    if recorded and report.found:
        raise HeadforceError("HF-GRAD", found="a call that records gradients", needed="a call without gradients")


def _note(report: SiteReport, variant: str) -> None:
    """Enters the graph of a model that was not prepared into the report; without a policy that is said once."""
    UNPREPARED.add("unchanged" if variant == PLAIN else "rewritten", report.found, report.refused, report.excluded)
    sites = len(report.found) + len(report.refused)
    if sites and variant == PLAIN and UNPREPARED.graphs_with_sites == 1:
        log.warning(
            "headforce: %d attention sites with a history, and no policy: the model runs unchanged. "
            "options={'policy': ...} gives it one, headforce.prepare(model, policy=...) also frees its cache.",
            sites,
        )


def _checked(compiled: Callable[..., Any], report: SiteReport, settings: Options) -> Callable[..., Any]:
    """A graph in which nothing could be rewritten, and which a model may call that was prepared later."""

    def run(*args: Any) -> Any:
        if active_session() is not None:
            with recording_refusals():
                check_refused(report, settings)
        return compiled(*args)

    return run


def _refusing(error: HeadforceError) -> Callable[..., Any]:
    def refuse(*args: Any) -> Any:
        with recording_refusals():
            raise error

    return refuse
