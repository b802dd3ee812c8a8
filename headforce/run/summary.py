"""The report of a run as a few lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .launcher import Finished
from .settings import EAGER


def summary(finished: Finished) -> str:
    """What became of every model of a command."""
    settings = finished.settings
    lines = [f"headforce: {settings.policy}, {settings.mode} mode, {finished.seconds:.1f} s"]
    if settings.mode == EAGER:
        lines = [f"headforce: unchanged, {finished.seconds:.1f} s"]
    for process in finished.processes:
        for model in process.get("models", []):
            lines += [f"  {model['name']} (process {process['pid']})", *_model(model, process, settings.mode)]
    return "\n".join(lines)


def table(report: dict[str, Any], out: Path) -> str:
    """The report of a comparison as text."""
    lines = []
    for video in report["videos"]:
        parts = "  ".join("equal" if part is None else f"{part:.1f}" for part in video["chunk_psnr"])
        whole = "equal" if video["psnr"] is None else f"{video['psnr']:.1f} dB"
        jumps = [f"{side} {'undefined' if v is None else f'{v:.2f}'}" for side, v in video["discontinuity"].items()]
        lines += [
            f"{out / video['film']}, {out / video['figure']}",
            f"  PSNR {whole}; of each chunk: {parts}",
            f"  chunk discontinuity, by {report['motion']}: {', '.join(jumps)}",
        ]
    return "\n".join(lines)


def _model(model: dict[str, Any], process: dict[str, Any], mode: str) -> list[str]:
    passes = _many(model["passes"], "pass", "passes")
    if mode == EAGER:
        return [f"    {passes}; K and V {_size(model['dense'])}"]
    sites, refused = model["sites"], model["refusal"]
    share = f" ({model['held'] / model['dense']:.0%})" if model["held"] and model["dense"] else ""
    held = f"{_size(model['held'])} held of {_size(model['dense'])}{share}" if model["held"] else "left to the model"
    return [
        f"    sites: {sites['rewritten']} rewritten, {sites['refused']} refused, {sites['excluded']} not about history",
        f"    {_many(model['launches'], 'launch', 'launches')} in {passes}"
        + (f", {model['misses']} without the policy" if model["misses"] else ""),
        f"    K and V: {held}",
        f"    {_many(model['graphs'], 'graph', 'graphs')}, {_many(process['breaks'], 'graph break', 'graph breaks')}",
        *([f"    refused: {refused}"] if refused else []),
    ]


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _size(count: int) -> str:
    """Bytes in MiB, in GiB from one on."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"
