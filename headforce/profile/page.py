"""The page of a profile: one HTML file with its pictures inside, which asks nobody for anything."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; } th, td { padding: .15rem .8rem .15rem 0; text-align: left; }
th { font-weight: 600; border-bottom: 1px solid #ccc; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } code { background: #f3f3f3; padding: 0 .2rem; } .dim { color: #777; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""


def page(report: Mapping[str, Any], pictures: Mapping[str, str], folder: Path) -> str:
    """The HTML of a report; `pictures` are files of `folder` and what they show."""
    model = report["model"]
    head = (
        f"{model['layers']} layers of {model['heads']} heads, {model['tokens_per_frame']} tokens in a frame; "
        f"videos: {len(report['videos'])}, passes: {sum(video['passes'] for video in report['videos'])}"
    )
    parts = [
        f"<h1>Heads of {escape(report['source'] or 'a model')}</h1><p class=dim>{escape(head)}</p>",
        f"<h2>Classes by {escape(report['method'])}</h2>",
        _table(("class", "heads"), report["counts"].items()),
        _trust(report),
        *(_figure(name, title, folder) for name, title in pictures.items()),
        *(_no_figure(title, why) for title, why in report["left_out"].items()),
        _methods(report),
        _budget(report),
        _rules(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>headforce profile</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _figure(name: str, title: str, folder: Path) -> str:
    content = base64.b64encode((folder / name).read_bytes()).decode()
    return f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{content}">'


def _no_figure(title: str, why: str) -> str:
    return f"<h2>{escape(title)}</h2><p class=dim>This cannot be drawn: {escape(why)}</p>"


def _trust(report: Mapping[str, Any]) -> str:
    """How stable the labels are, and what chance would give."""
    said = {
        "prompt": "other prompts",
        "seed": "other noise",
        "chunk": "other chunks of the same video",
        "video": "other rows of the batch",
    }
    rows = [("all videos agree on a head", report["unanimous"])] if len(report["videos"]) > 1 else []
    rows += [(f"same label in {said.get(key, key)}", share) for key, share in report["stability"].items()]
    rows += [(f"same label by chance: {name}", control["same"]) for name, control in report["controls"].items()]
    return _table(("", "share of heads"), ((name, _share(value)) for name, value in rows))


def _methods(report: Mapping[str, Any]) -> str:
    rows = [(name, ", ".join(f"{n} {c}" for n, c in counts.items())) for name, counts in report["methods"].items()]
    rows += report["refused"].items()
    pairs = [(" and ".join(pair["methods"]), f"{pair['rand_index']:.2f}") for pair in report["agreement"]]
    return (
        "<h2>Other methods</h2>"
        + _table(("method", "heads"), rows)
        + "<p class=dim>Agreement, as the adjusted Rand index: 1 the same groups of heads, 0 as by chance.</p>"
        + _table(("methods", "agreement"), pairs)
    )


def _budget(report: Mapping[str, Any]) -> str:
    found = report["budget"]
    if found is None:
        return ""
    rows = [
        ("K and V of one video", f"{found['bytes'] / 2**20:.2f} MiB"),
        ("of the model's own", f"{found['dense_bytes'] / 2**20:.2f} MiB, {_share(found['share'])}"),
        ("attention kept", _share(found["kept"])),
        *((f"attention kept, rules {name}", _share(kept)) for name, kept in found["controls"].items()),
    ]
    tables = _table(("", ""), rows) + _table(("rule", "heads"), found["heads"].items())
    return "<h2>The policy within the budget</h2>" + tables


def _rules(report: Mapping[str, Any]) -> str:
    rows = ((rule["rule"], rule["pages"], _share(rule["kept"])) for rule in report["rules"])
    return "<h2>Rules, for all heads alike</h2>" + _table(("rule", "frames held", "attention kept"), rows)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _table(names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>" if body else ""


def _cell(value: object) -> str:
    number = isinstance(value, int | float) or re.fullmatch(r"-?[\d.]+%?", str(value))
    return f"<td class=n>{escape(str(value))}</td>" if number else f"<td>{escape(str(value))}</td>"
