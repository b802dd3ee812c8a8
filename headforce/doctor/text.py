"""A diagnosis as text. Lines are not wrapped, so that a terminal and an editor find file:line in them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from ..kvpass.explanation import counted
from .diagnosis import VERDICTS, BreakVerdict, Diagnosis, RunFacts, SiteVerdict

_COLOURS = {"owned": "green", "view": "yellow", "refused": "red", "excluded": "dim"}
_MIB, _GIB = 2**20, 2**30


def report(diagnosis: Diagnosis) -> Text:
    """All of it, in colours; `.plain` is the text without them."""
    return Text("\n").join(_lines(diagnosis))


def _lines(seen: Diagnosis) -> Iterator[Text]:
    family = f"family {seen.family}" if seen.family else "of no known family"
    yield Text(f"{seen.model}, {family}: {seen.summary}", style="bold green" if seen.ok else "bold red")
    for note in seen.notes:
        yield Text(f"* {note}")
    if seen.sites:
        yield Text()
        for names, site in seen.grouped():
            yield from _site(names, site)
        for verdict in dict.fromkeys(site.verdict for site in seen.sites):
            yield Text(f"{verdict}: {VERDICTS[verdict]}", style="dim")
    yield Text()
    yield Text(f"as it is        {run_words(seen.bare)}")
    if seen.prepared is not None:
        yield Text(f"after prepare   {run_words(seen.prepared)}")
    for broken in seen.breaks:
        yield from _break(broken)
    yield Text()
    yield Text(f"K and V now     {bytes_words(seen.kv_bytes)}")
    if seen.outlook is not None:
        yield Text(f"under {seen.policy}, {seen.outlook}")


def _site(names: str, site: SiteVerdict) -> Iterator[Text]:
    yield Text.assemble(
        (f"{site.verdict:<9} ", _COLOURS[site.verdict]), (names, "bold"), f"  {site.where}", style="none"
    )
    said = (
        ("attention", site.query),
        ("cache", site.cache),
        ("RoPE", site.rope),
        ("because", site.code and f"[{site.code}] {site.reason}"),
        ("bare torch.compile", site.bare),
    )
    for word, value in said:
        if value:
            yield Text(f"    {word:<19}{value}")


def _break(broken: BreakVerdict) -> Iterator[Text]:
    found = broken.found
    yield Text.assemble(("break     ", "yellow"), (found.cause, "bold"), f"  {found.where}", style="none")
    yield Text(f"    {found.source or found.reason}")
    if found.uncompiled:
        yield Text("    the function around it then runs uncompiled")
    removed = ("removed by ", "green") if broken.removed else "to change: "
    yield Text.assemble("    ", removed, broken.remedy, style="none")


def run_words(run: RunFacts) -> str:
    """Graphs, breaks and the error of a run, in one line."""
    graphs = ", ".join(map(str, run.graphs))
    failed = f"; the last call failed at {run.error}" if run.error else ""
    breaks = f"breaks at {counted(len(run.breaks), 'place')}" if run.breaks else "no breaks"
    return f"{counted(sum(run.graphs), 'graph')} (by call: {graphs}), {breaks}{failed}"


def bytes_words(count: int | None) -> str:
    """Bytes in MiB or GiB; what to say where nobody knows."""
    if count is None:
        return "unknown: no cache was recognised"
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / _MIB:.2f} MiB"
