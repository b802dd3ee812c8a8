"""What the doctor says: plain data, and its JSON."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from ..kvpass.breaks import Break
from ..kvpass.explanation import Outlook

JSON_VERSION = 1
OWNED, VIEW, REFUSED, EXCLUDED = "owned", "view", "refused", "excluded"
VERDICTS = {
    OWNED: "headforce.prepare owns the cache: time and bytes",
    VIEW: "the model keeps its cache, and attention reads the rows of the policy: time, no bytes",
    REFUSED: "stays as it is, for the reason of its code",
    EXCLUDED: "no policy is about it",
}


@dataclass(frozen=True)
class SiteVerdict:
    """One attention call of the model, over all passes that were seen.

    Attributes:
        name, where: path of the module, and file:line of the call.
        verdict: a key of `VERDICTS`; the worst of all passes. code, reason: why it is no better.
        bare: what `torch.compile(model, backend="headforce")` can do without `prepare`: "view", a code, or "" if no
            such call was seen.
        query, cache, rope: what was recognised, in words.
    """

    name: str
    where: str
    verdict: str
    code: str = ""
    reason: str = ""
    bare: str = ""
    query: str = ""
    cache: str = ""
    rope: str = ""

    @property
    def rewritable(self) -> bool:
        """True if a policy can act on it."""
        return self.verdict in (OWNED, VIEW)

    @property
    def counts(self) -> bool:
        """True if it is refused although it has a history, in any pass that was seen."""
        return self.verdict == REFUSED and (self.code != "HF-NOHISTORY" or bool(self.cache))


@dataclass(frozen=True)
class BreakVerdict:
    """A graph break of the model as it is.

    Attributes:
        found: the break. removed: True if it is gone once the model is prepared. remedy: what `prepare` puts there, or
            what to change.
    """

    found: Break
    removed: bool
    remedy: str


@dataclass(frozen=True)
class RunFacts:
    """One way to run the calls. `graphs`: compiled in each call; `breaks`, `error`: what was in the way."""

    graphs: tuple[int, ...]
    breaks: tuple[Break, ...]
    error: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What headforce can do for a model.

    Attributes:
        model: the class of the model. family: the adapter that knows it, or None.
        bare: the model as it is. prepared: with what its adapter puts in place; None without an adapter.
        breaks: the breaks of `bare`, and what removes each. sites: every attention call.
        kv_bytes: bytes of K and V that the sites of the last call keep, or None if none was recognised.
        policy: the policy that `outlook` is about. outlook: what it would keep and hold, or None.
        notes: what follows from it, in sentences.
    """

    model: str
    family: str | None
    bare: RunFacts
    prepared: RunFacts | None
    breaks: tuple[BreakVerdict, ...]
    sites: tuple[SiteVerdict, ...]
    kv_bytes: int | None
    policy: str | None
    outlook: Outlook | None
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if there is self-attention with a history, and all of it can be rewritten."""
        ran = not self.bare.error or (self.prepared is not None and not self.prepared.error)
        return ran and not any(site.counts for site in self.sites) and any(site.rewritable for site in self.sites)

    @property
    def summary(self) -> str:
        """The answer in one sentence."""
        can = [site for site in self.sites if site.rewritable]
        asked = len(can) + sum(site.counts for site in self.sites)
        if not asked:
            return "no self-attention with a history was seen"
        if not can:
            return f"0 of {asked} self-attention sites can be rewritten"
        how = "owned after headforce.prepare" if all(site.verdict == OWNED for site in can) else "view mode"
        return f"{len(can)} of {asked} self-attention sites can be rewritten: {how}"

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code that the sites name, once."""
        named = [code for site in self.sites for code in (site.code, site.bare) if code.startswith("HF-")]
        return tuple(dict.fromkeys(named))

    def grouped(self) -> list[tuple[str, SiteVerdict]]:
        """The sites, with layers that are alike as one: their names in words, and the verdict of the first."""
        groups: dict[SiteVerdict, list[SiteVerdict]] = {}
        for site in self.sites:
            reason = re.sub(r"_?\d+", "", site.reason)  # it may name the cache of the layer
            groups.setdefault(dataclasses.replace(site, name="", reason=reason), []).append(site)
        return [
            (s[0].name if len(s) == 1 else f"{s[0].name} ... {s[-1].name} ({len(s)})", s[0]) for s in groups.values()
        ]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as plain data."""
        return {"version": JSON_VERSION, "ok": self.ok, "summary": self.summary, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        from .text import report

        return report(self).plain
