"""The pictures of a profile, as PNG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..draw import COLOURS, save_reads
from ..errors import HeadforceError
from ..lowering.preview import preview
from ..policy import Policy, Schedule
from .budget import NATIVE, Budgeted, Candidates
from .classify import Classified
from .measured import Profile
from .periodicity import folded_spectrum
from .report import Judged, budget_controls, kept_by

SHOWN = 12
"""Heads of which a spectrum is drawn."""


def draw_pictures(judged: Judged, policy: Policy, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Draws all pictures that can be drawn; file name -> what it shows, and what the others show -> why they cannot be.

    A profile has labels also where a picture of it has no meaning, such as spectra of a short video, or what a policy
    reads that cuts frames into parts which those of this model do not have.
    """
    pictures: list[tuple[str, str, Callable[[Path], None]]] = [
        ("heads.png", "Attention of every head, by the distance of the frame", partial(heads, judged.profile)),
        ("classes.png", "Classes of heads, layer by layer", partial(classes, judged.chosen)),
        ("spectra.png", "Periods of the heads that come back to frames most regularly", partial(spectra, judged)),
        ("budget.png", "Attention that is kept, against bytes", partial(budget, judged.candidates, judged.budgeted)),
        ("reads.png", "What the policy reads, chunk by chunk", partial(reads, policy, judged)),
    ]
    drawn, left_out = {}, {}
    for name, title, draw in pictures:
        try:
            draw(folder / name)
        except HeadforceError as error:
            left_out[title] = str(error)
        else:
            drawn[name] = title
    return drawn, left_out


def heads(profile: Profile, path: Path) -> None:
    """Heads down, layer by layer; across the chunk itself, then the distance of past frames from it."""
    passes = list(profile.passes())
    furthest = max(p.chunk.start - p.keys[0] for p in passes)
    grid = np.zeros((profile.model.layers * profile.model.heads, furthest + 1))
    for passed in passes:
        mass = passed.mass.mean(2).reshape(len(grid), -1)
        for frame, column in zip(passed.keys, mass.T, strict=True):
            grid[:, max(0, passed.chunk.start - frame)] += column / len(passes)
    figure, axes = _figure((9, min(16.0, 2.0 + 0.05 * len(grid))))
    image = axes.imshow(np.log10(np.maximum(grid, 1e-4)), aspect="auto", cmap="magma", interpolation="nearest", vmax=0)
    ticks = range(0, furthest + 1, -(-(furthest + 1) // 12))
    axes.set_xticks(ticks, ["chunk" if tick == 0 else str(tick) for tick in ticks])
    every = max(1, profile.model.layers // 16)
    starts = [layer * profile.model.heads for layer in range(0, profile.model.layers, every)]
    axes.set_yticks(starts, [f"layer {start // profile.model.heads}" for start in starts])
    axes.set_xlabel("frames before the chunk", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.6)
    bar.set_label("share of attention, log10", fontsize=9)
    figure.savefig(path, dpi=130, format="png")


def classes(found: Classified, path: Path) -> None:
    """Bars of as many heads of each class as a layer has."""
    layers = range(len(found.labels.layers))
    figure, axes = _figure((9, 2.8))
    bottom = np.zeros(len(layers))
    for colour, name in zip(COLOURS, found.method.classes, strict=False):
        count = np.array([len(found.labels.of(layer).get(name, ())) for layer in layers])
        axes.bar(layers, count, bottom=bottom, color=colour, label=name, width=0.8)
        bottom += count
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("heads", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def spectra(judged: Judged, path: Path) -> None:
    """The folded spectra of the wave heads, or without such of those with the sharpest peak.

    Raises HF-PROFILE-DATA for a video with too few frames in a row.
    """
    found = [folded_spectrum(passed.logits_in_a_row) for passed in judged.profile.passes()]
    _, periods = found[0]
    same = [spectrum.mean(2) for spectrum, its in found if len(its) == len(periods)]
    mean = np.mean(same, axis=0)
    sharp = mean.max(-1) / np.maximum(mean.mean(-1), 1e-12)
    pyramid = judged.chosen if judged.chosen.method.name == "pyramid" else judged.others.get("pyramid")
    if pyramid is not None and "wave" in pyramid.labels.classes:
        sharp = np.where(np.array(pyramid.labels.layers) == "wave", sharp, -1.0)
    cells = [np.unravel_index(i, sharp.shape) for i in np.argsort(-sharp, axis=None, kind="stable")[:SHOWN]]
    figure, axes = _figure((9, 3.4))
    for layer, head in (cell for cell in cells if sharp[cell] > 0):
        curve = mean[layer, head]
        axes.plot(periods, curve / max(curve.max(), 1e-12), label=f"layer {layer}, head {head}", linewidth=1.2)
    axes.set_xlabel("period in frames", fontsize=9)
    axes.set_ylabel("amplitude, peak = 1", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def budget(found: Candidates, chosen: Budgeted | None, path: Path) -> None:
    """Every rule for all heads alike, the best of every budget, and the one that was chosen with its controls."""
    mib = found.frame_bytes / 2**20
    figure, axes = _figure((9, 4.2))
    held, means = found.pages * found.kept[0].size * mib, found.kept.mean((1, 2))
    axes.scatter(held, means, color="#888888", s=18, label="one rule for all heads", zorder=3)
    for name, *point in zip(found.names, held, means, strict=True):
        axes.annotate(name, point, fontsize=6, xytext=(4, -7), textcoords="offset points")
    if chosen is not None:
        budgets = np.flatnonzero(np.isfinite(chosen.best))
        axes.plot(budgets * mib, chosen.best[budgets], color=COLOURS[0], label="the best of each budget")
        axes.scatter([chosen.pages * mib], [chosen.kept], color=COLOURS[1], s=60, label="chosen", zorder=4)
        for marker, (name, which) in zip("xv", budget_controls(chosen).items(), strict=True):
            kept = kept_by(chosen, which)
            axes.scatter([chosen.pages * mib], [kept], color=COLOURS[1], marker=marker, s=40, label=f"the same, {name}")
    axes.set_xlabel("K and V held, MiB", fontsize=9)
    axes.set_ylabel("share of attention kept", fontsize=9)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def reads(policy: Policy, judged: Judged, path: Path) -> None:
    """The policy over time, in chunks as long as the measured ones. Raises what `Policy.bind` raises."""
    model, native = judged.profile.model, judged.candidates.rules[NATIVE]
    bound = policy.bind(layers=model.layers, heads=model.heads, native=native, tokens=model.tokens_per_frame)
    frames = judged.profile.videos[0].passes[-1].chunk.frames
    save_reads(bound, list(preview(bound, Schedule.parse(f"{frames}x10"))), path)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
