"""The report for a terminal: one table, what its numbers mean, and the checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SHOWN = ("dense", "dense_compiled", "native", "policy")


def table(report: Mapping[str, Any]) -> RenderableType:
    """Draws the report that `build_report` made."""
    grid = Table(title=_title(report), title_justify="left")
    grid.add_column("", no_wrap=True)
    for name in SHOWN:
        grid.add_column(report["sides"][name]["title"], justify="right")
    for label, cell in _rows(report):
        grid.add_row(label, *(cell(name) for name in SHOWN))
    return Group(grid, Text(_notes(report), style="dim"), *map(_check, report["checks"]))


def _title(report: Mapping[str, Any]) -> str:
    model, rollout, made = report["model"], report["rollout"], report["made_with"]
    parts = [
        f"{model['layers']} layers of {model['heads']} heads x {model['head_dim']}",
        f"{model['tokens_per_frame']} tokens in a frame",
        f"window {model['window_frames']}",
        f"{rollout['chunks']} chunks of {rollout['chunk_frames']} frames",
        f"torch {made['torch']}",
        f"CPU, {made['threads']} threads",
    ]
    return ", ".join(parts)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, Callable[[str], str]]]:
    sides, errors, structure = report["sides"], report["errors"], report["structure"]
    past = report["model"]["window_frames"] - report["rollout"]["chunk_frames"]
    since = report["rollout"]["evicting_chunks"][0]
    classes = report["policy"]["classes"].items()
    error = {
        "dense_compiled": f"{errors['compiled_against_eager']:.0e}",
        "native": f"{errors['native_against_dense']:.0e}",
        "policy": f"{errors['policy_against_reference']:.0e}",
    }
    graphs = {
        "dense_compiled": str(sides["dense_compiled"]["graphs"]),
        "native": str(structure["graphs_for_native"]),
        "policy": f"the same, +{structure['graphs_more_for_policy']}",
    }
    more = report["bytes"]["peak"] > report["bytes"]["held"]
    during = {"policy": f"{report['bytes']['peak'] / 2**20:.1f}"} if more else {}
    compiled = {"policy": f"{structure['launches_per_layer_and_pass']:g}"}
    breaks = {"policy": str(structure["graph_breaks"])}
    return [
        ("time of a chunk, s", lambda name: f"{sides[name]['chunk_seconds']:.2f}"),
        ("  dense, eager = 1", lambda name: f"{sides[name]['time_ratio']['dense']:.2f}"),
        ("  dense, compiled = 1", lambda name: f"{sides[name]['time_ratio']['dense_compiled']:.2f}"),
        ("K and V held, MiB", lambda name: f"{sides[name]['held_bytes'] / 2**20:.1f}"),
        ("  dense = 1", lambda name: f"{sides[name]['held_bytes'] / report['bytes']['dense']:.2f}"),
        *([("  during the warm-up", lambda name: during.get(name, ""))] if during else []),
        *((f"past frames, {key}", _kept(past, max(value["kept"][since:]))) for key, value in classes),
        ("error of the video", lambda name: error.get(name, "")),
        ("graphs", lambda name: graphs.get(name, "")),
        ("graph breaks", lambda name: breaks.get(name, "")),
        ("launches, layer & pass", lambda name: compiled.get(name, "")),
        ("compiling passes, s", lambda name: f"{sides[name]['compiling_passes_seconds']:.0f}"),
    ]


def _kept(past: int, kept: int | float) -> Callable[[str], str]:
    return lambda name: f"{kept if name == 'policy' else past:.4g}"


def _notes(report: Mapping[str, Any]) -> str:
    rollout, policy = report["rollout"], report["policy"]
    labels = f", labels of the heads: {policy['labels']}" if policy["labels"] else ""
    if policy["classified"]:
        labels = ", heads classified while the video is made"
    first, last = rollout["evicting_chunks"][0], rollout["evicting_chunks"][-1]
    return (
        f"Policy: {policy['file']}{labels}.\n"
        f"A chunk is {rollout['passes_per_chunk'] - 1} noisy and 1 clean pass. Its time is the sum, over its"
        f" passes, of the median over chunks {first} to {last}, in which the dense cache is full and evicts; passes"
        " that compile are left out. All sides run in turn, pass by pass. Past frames: the most that a head of the"
        " class reads in these chunks; parts of frames count as parts.\n"
        "K and V held: the caches of the dense model; the pools of headforce, current chunk included.\n"
        "Errors are the largest deviation of the latents of the whole video over their largest value. The reference"
        " is an eager model that keeps every frame and reads, head by head, what the policy's oracle names.\n"
        "Weights are random: the demo measures time, bytes and exactness, and says nothing about quality."
    )


def _check(check: Mapping[str, Any]) -> Text:
    return Text.assemble(("ok      ", "green") if check["holds"] else ("FAILED  ", "bold red"), check["sentence"])
