"""A backend that only looks: every attention call of the graphs it gets, and the numbers of every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.fx import GraphModule

from ..errors import HeadforceError
from .eligible import check_ownable, check_viewable
from .explanation import SiteFacts
from .find import find_sites
from .layers import PassFacts
from .site import Site, SiteReport
from .site_reader import SiteReader


class Ran(NamedTuple):
    """A site that ran, in the graph of this number, and what it showed of the pass."""

    graph: int
    site: Site
    facts: PassFacts


class Observer:
    """Runs every graph as it is.

    Attributes:
        reports: what was found in every graph. ran: every site each time it ran, in order.
    """

    def __init__(self) -> None:
        self.reports: list[SiteReport] = []
        self.ran: list[Ran] = []

    def __call__(self, module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        report = find_sites(module, example_inputs)
        graph = len(self.reports)
        self.reports.append(report)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        readers = [SiteReader(site, report, inputs) for site in report.found]

        def run(*args: Any) -> Any:
            self.ran.extend(Ran(graph, reader.site, reader.facts(args)) for reader in readers)
            return module.forward(*args)

        return run

    def lines(self) -> Iterator[SiteFacts]:
        """Every attention call: sites each time they ran, in order, then the refused and the excluded of each graph."""
        for graph, site, facts in self.ran:
            owned, viewed = (why_not(check, site) for check in (check_ownable, check_viewable))
            yield SiteFacts.of(graph, site, facts, owned, viewed)
        for verdict in ("refused", "excluded"):
            for graph, report in enumerate(self.reports):
                for refusal in report.refused if verdict == "refused" else report.excluded:
                    yield SiteFacts.no(graph, verdict, refusal)


def why_not(check: Callable[..., None], *args: Any) -> str:
    """What a check refuses, in one line; empty if it refuses nothing."""
    try:
        check(*args)
    except HeadforceError as error:
        return f"[{error.code}] found {error.found}; needed {error.needed}"
    return ""
