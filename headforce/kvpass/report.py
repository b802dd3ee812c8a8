"""What was found, rewritten and refused: the record behind `session.report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .site import Refusal, Site


@dataclass(frozen=True)
class SiteLine:
    """One attention call of one graph. `verdict` is "rewritten", "unchanged", "refused" or "excluded"."""

    graph: int
    name: str
    where: str
    verdict: str
    reason: str = ""

    def __str__(self) -> str:
        tail = f": {self.reason}" if self.reason else ""
        return f"graph {self.graph}  {self.verdict:<9}  {self.name} ({self.where}){tail}"


@dataclass
class Report:
    """Grows with every graph that is compiled or used."""

    graphs: int = 0
    sites: list[SiteLine] = field(default_factory=list)

    def add(self, verdict: str, found: Sequence[Site], refused: Sequence[Refusal], excluded: Sequence[Refusal]) -> None:
        """One graph more. `verdict` is what became of the sites that were found."""
        lines = [SiteLine(self.graphs, site.name, site.where, verdict) for site in found]
        for kind, refusals in (("refused", refused), ("excluded", excluded)):
            for r in refusals:
                reason = f"[{r.code}] found {r.found}; needed {r.needed}"
                lines.append(SiteLine(self.graphs, r.site, r.where, kind, reason))
        self.sites += lines
        self.graphs += 1

    def count(self, verdict: str) -> int:
        """How many sites, over all graphs, have this verdict."""
        return sum(line.verdict == verdict for line in self.sites)

    @property
    def graphs_with_sites(self) -> int:
        """Graphs in which attention with a history was found, rewritten or not."""
        return len({line.graph for line in self.sites if line.verdict != "excluded"})

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"graphs": self.graphs, "sites": [dict(vars(line)) for line in self.sites]}

    def __str__(self) -> str:
        head = f"{self.graphs} graphs, {self.count('rewritten')} sites rewritten, {self.count('refused')} refused"
        return "\n".join([head, *map(str, self.sites)])
