"""A diagnosis as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..kvpass.explanation import counted
from .diagnosis import VERDICTS, Diagnosis, RunFacts

_COLOURS = {"owned": "green", "view": "yellow", "refused": "red", "excluded": "dim"}
_MIB = 2**20


def plain(diagnosis: Diagnosis, width: int = 120) -> str:
    """The text without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(report(diagnosis))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def report(diagnosis: Diagnosis) -> RenderableType:
    """All of it, for a console of any width."""
    return Group(*_parts(diagnosis))


def _parts(seen: Diagnosis) -> Iterator[RenderableType]:
    family = f"family {seen.family}" if seen.family else "of no known family"
    yield Text(f"{seen.model}, {family}: {seen.summary}", style="bold green" if seen.ok else "bold red")
    if seen.sites:
        yield Text()
        yield _sites(seen)
    yield Text()
    yield Text(f"as it is        {run_words(seen.bare)}")
    if seen.prepared is not None:
        yield Text(f"after prepare   {run_words(seen.prepared)}")
    if seen.breaks:
        yield Text()
        yield _breaks(seen)
    yield Text()
    yield Text(f"K and V now     {bytes_words(seen.kv_bytes)}")
    if seen.outlook is not None:
        yield Text(f"under {seen.policy}\n{seen.outlook}")
    for note in seen.notes:
        yield Text(f"* {note}")


def run_words(run: RunFacts) -> str:
    """Graphs, breaks and the error of a run, in one line."""
    graphs = ", ".join(map(str, run.graphs))
    failed = f"; the last call failed at {run.error}" if run.error else ""
    breaks = f"breaks at {counted(len(run.breaks), 'place')}" if run.breaks else "no breaks"
    return f"{counted(sum(run.graphs), 'graph')} (by call: {graphs}), {breaks}{failed}"


def bytes_words(count: int | None) -> str:
    """Bytes in MiB; what to say where nobody knows."""
    return "unknown: no cache was recognised" if count is None else f"{count / _MIB:.2f} MiB"


def _sites(seen: Diagnosis) -> Table:
    table = Table("attention", "verdict", "bare", "what was recognised", title_justify="left", expand=False)
    for names, site in seen.grouped():
        said = [site.query, site.cache, site.rope and f"RoPE {site.rope}"]
        if site.code:
            said.append(f"[{site.code}] {site.reason}")
        table.add_row(
            Text(f"{names}\n{site.where}", overflow="fold"),
            Text(site.verdict, style=_COLOURS[site.verdict]),
            Text(site.bare),
            Text("\n".join(filter(None, said)), overflow="fold"),
        )
    table.caption = "; ".join(f"{name}: {VERDICTS[name]}" for name in dict.fromkeys(s.verdict for s in seen.sites))
    table.caption_justify = "left"
    return table


def _breaks(seen: Diagnosis) -> Table:
    table = Table("graph break", "where", "what removes it")
    for verdict in seen.breaks:
        found = verdict.found
        lost = "\nthe function then runs uncompiled" if found.uncompiled else ""
        table.add_row(
            Text(found.cause),
            Text(f"{found.where}\n{found.source}{lost}", overflow="fold"),
            Text(verdict.remedy, style="green" if verdict.removed else ""),
        )
    return table
