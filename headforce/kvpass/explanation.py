"""What `headforce.explain` returns: plain data, its text and its JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .breaks import Break
from .layers import PassFacts
from .site import PREFILL, Refusal, Site

JSON_VERSION = 2


@dataclass(frozen=True)
class SiteFacts:
    """One attention call of one graph.

    Attributes:
        graph, name, where: the number of the graph, the path of the module, and file:line of the call.
        verdict: "found", "refused" or "excluded". code, reason: why, if not found.
        query, frames, cache, rope: what was recognised, in words; the frames are those of this pass.
        not_owned, not_viewed: why the site cannot be rewritten in owned or in view mode; empty if it can.
    """

    graph: int
    name: str
    where: str
    verdict: str
    code: str = ""
    reason: str = ""
    query: str = ""
    frames: str = ""
    cache: str = ""
    rope: str = ""
    not_owned: str = ""
    not_viewed: str = ""

    @staticmethod
    def of(graph: int, site: Site, facts: PassFacts, not_owned: str, not_viewed: str) -> SiteFacts:
        """A site that was found, in one call."""
        form, rope = site.cache, site.rope
        shared = "" if site.heads == site.kv_heads else f" over {site.kv_heads} K/V heads"
        end = facts.start + facts.frames - 1
        query = f"{site.heads} heads x {site.head_dim}{shared}, {str(site.dtype).removeprefix('torch.')}"
        frames = f"frames {facts.start} to {end}, {facts.rows} tokens each" if facts.start >= 0 else ""
        kept = f"{facts.cache_rows} rows" + (f", {facts.cache_rows // facts.rows} frames" if facts.start >= 0 else "")
        cache = {
            "append": f"written in place, {kept}",
            "cat": f"joined by cat, {kept} of past",
            PREFILL: f"written in place and not read in this pass, {kept}",
        }[form.kind]
        if form.roll is not None:
            cache += f"; evicts {facts.evicted} rows behind a sink of {facts.sink}"
        words = "; ".join(site.notes) or "none"
        if rope is not None:
            turning = "unknown pairs" if rope.temporal is None else "pairs {} to {}".format(*_inclusive(rope.temporal))
            words = f"{rope.kind}, {turning} of {rope.pairs} turn with the frame"
            words += {"before": "; keys rotated when written", "after": "; keys rotated when read", None: ""}[
                form.keys_rotated
            ]
        return SiteFacts(
            graph,
            site.name,
            site.where,
            "found",
            query=query,
            frames=frames,
            cache=cache,
            rope=words,
            not_owned=not_owned,
            not_viewed=not_viewed,
        )

    @staticmethod
    def no(graph: int, verdict: str, refusal: Refusal) -> SiteFacts:
        """An attention call that is left as it is."""
        reason = refusal.found if verdict == "excluded" else f"found {refusal.found}; needed {refusal.needed}"
        return SiteFacts(graph, refusal.site, refusal.where, verdict, refusal.code, reason)

    def __str__(self) -> str:
        tail = f": [{self.code}] {self.reason}" if self.code else ""
        return f"graph {self.graph}  {self.verdict:<9} {self.name} ({self.where}){tail}"

    @property
    def details(self) -> tuple[str, ...]:
        """What was recognised, in lines."""
        if self.verdict != "found":
            return ()
        return (
            f"attention  {self.query}" + (f"; {self.frames}" if self.frames else ""),
            f"cache      {self.cache}",
            f"RoPE       {self.rope}",
            f"owned      {self.not_owned or 'yes'}",
            f"view       {self.not_viewed or 'yes'}",
        )


def _inclusive(bounds: tuple[int, int]) -> tuple[int, int]:
    return bounds[0], bounds[1] - 1


def counted(count: int, word: str) -> str:
    """The number with its word, in the plural unless it is one."""
    return f"{count} {word}" + ("" if count == 1 else "s")


@dataclass(frozen=True)
class ClassLine:
    """A class of heads: its name (None for heads without one), its rule, how many heads, and most past frames read."""

    name: str | None
    rule: str
    heads: int
    kept: int


@dataclass(frozen=True)
class Outlook:
    """What a policy makes of a stream of chunks of `frames` frames.

    Attributes:
        chunk: the chunk that `classes` and `flops` are about, after the model's cache has begun to evict.
        native, native_kept: the model's own rule, and the past frames it reads there.
        pool_bytes: bytes of K and V in owned mode. dense_bytes: the same of the unmodified model.
        not_viewed: why the policy needs owned mode; empty if view mode will do.
        flops: attention's work in that chunk, as a part of the unmodified model's.
    """

    chunk: int
    frames: int
    native: str
    native_kept: int
    classes: tuple[ClassLine, ...]
    pool_bytes: int
    dense_bytes: int
    not_viewed: str
    flops: float

    def __str__(self) -> str:
        width = max(len(line.name or "native") for line in self.classes)
        lines = [
            f"  {line.name or 'native':<{width}}  {line.heads:>4} heads  "
            f"{line.kept:>3} of {self.native_kept} past frames  {line.rule}"
            for line in self.classes
        ]
        mib = 2**20
        return "\n".join(
            [
                f"chunk {self.chunk} of a stream of {self.frames} frames a chunk; the model itself reads {self.native}",
                *lines,
                f"  K and V in owned mode {self.pool_bytes / mib:.2f} MiB, dense {self.dense_bytes / mib:.2f} MiB; "
                f"attention {self.flops:.2f} of the dense work",
                f"  in view mode: {self.not_viewed or 'yes, without saving bytes'}",
            ]
        )


@dataclass(frozen=True)
class Explanation:
    """What headforce sees in one call of a model.

    Attributes:
        model: the class of the model. family: the adapter that knows it, or None. prepared: the session's mode or None.
        graphs: graphs of the call. breaks: where a graph ended and why.
        sites: every attention call. outlook: what a policy would make of it, if one was given and a site was found.
    """

    model: str
    family: str | None
    prepared: str | None
    graphs: int
    breaks: tuple[Break, ...]
    sites: tuple[SiteFacts, ...]
    outlook: Outlook | None

    def count(self, verdict: str) -> int:
        """How many attention calls have this verdict."""
        return sum(site.verdict == verdict for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {"version": JSON_VERSION, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        family = f"family {self.family}" if self.family else "of no known family: view mode only"
        state = f", prepared ({self.prepared})" if self.prepared else ""
        counts = ", ".join(f"{self.count(v)} {v}" for v in ("found", "refused", "excluded"))
        lines = [
            f"{self.model}, {family}{state}",
            f"{counted(self.graphs, 'graph')}, {counted(len(self.breaks), 'graph break')}; attention calls: {counts}",
            *(f"graph break: {found}" for found in self.breaks),
        ]
        said: set[tuple[str, ...]] = set()
        for site in self.sites:
            lines.append(str(site))
            if site.details and site.details not in said:  # layers are alike, as a rule
                said.add(site.details)
                lines += [f"    {line}" for line in site.details]
        if self.outlook is not None:
            lines.append(str(self.outlook))
        return "\n".join(lines)
