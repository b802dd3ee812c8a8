"""The report of `rollout.py`: ratios, the table, the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bars
from report import aligned, caption, ratio, remark
from sides import Variant

GIB = 2**30


def compare(results: dict[str, dict[str, Any]], variants: Sequence[Variant]) -> dict[str, dict[str, Any]]:
    """Fills in how many times faster than (a0), (a1), (b) and (c) each is; (c) are the grouped calls of its preset."""
    times = {name: result["chunk_ms"] for name, result in results.items()}
    for variant in variants:
        others = {"a0": "a0", "a1": "a1", "b": "b", "c": f"grouped {variant.meaning}"}
        own = times[variant.name]
        results[variant.name]["over"] = {key: ratio(times.get(other), own) for key, other in others.items()}
    return results


def _part(name: str) -> Any:
    return lambda result: (result["parts"] or {}).get(name)


def _over(name: str) -> Any:
    return lambda result: result["over"].get(name)


def _first(number: int) -> Any:
    return lambda result: result["first_chunk"][number]["seconds"] if result["first_chunk"] else None


def _gib(name: str) -> Any:
    return lambda result: None if result[name] is None else result[name] / GIB


COLUMNS = {
    "FPS": (lambda result: result["fps"], "{:.1f}"),
    "chunk ms": (lambda result: result["chunk_ms"], "{:.1f}"),
    **{f"over {name}": (_over(name), "{:.2f}") for name in ("a0", "a1", "b", "c")},
    **{name: (_part(name), "{:.1f}") for name in ("attention", "linear", "rest", "host")},
    "slowest": (lambda result: result["slowest_over_median"], "{:.2f}"),
    "held GiB": (_gib("held_bytes"), "{:.3g}"),
    "peak GiB": (_gib("peak_bytes"), "{:.2f}"),
    "graphs": (lambda result: result["graphs"], "{}"),
    "later": (lambda result: result["later_graphs"], "{}"),
    "replays": (lambda result: result["replays"], "{}"),
    "first s": (_first(0), "{:.0f}"),
    "again s": (_first(1), "{:.0f}"),
    "error": (lambda result: result["error"], "{:.1e}"),
}


def table(report: dict[str, Any]) -> str:
    """The report as one Markdown table. Columns in which nothing stands are left out."""
    found = [(case["case"], name, result) for case in report["cases"] for name, result in case["variants"].items()]
    columns = {
        title: (value, form) for title, (value, form) in COLUMNS.items() if any(value(r) is not None for *_, r in found)
    }
    rows = [["case", "variant", *columns, ""]]
    for case, name, result in found:
        values = [(value(result), form) for value, form in columns.values()]
        rows.append([case, name, *("" if v is None else form.format(v) for v, form in values), remark(result)])
    return aligned(rows)


def draw(report: dict[str, Any], path: Path) -> None:
    """One picture: frames per second and bytes held, of every variant of every case."""
    rows = [
        [
            (f"{case['case']}: {title}", {name: value(result) for name, result in case["variants"].items()})
            for value, title in (
                (lambda result: result["fps"], "frames per second, steady"),
                (_gib("held_bytes"), "GiB of K and V held"),
            )
        ]
        for case in report["cases"]
    ]
    bars.draw(rows, path, caption(report["machine"]))
