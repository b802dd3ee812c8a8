"""The picture of a comparison: PSNR of each chunk, and how much the two videos move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

LINES = {"eager": ("#bbbbbb", 4.0), "policy": ("#ee6677", 1.2)}
"""Colour and width: of two lines in one place both are seen."""


def save_figure(
    chunks: Sequence[int],
    psnr: Sequence[float],
    deltas: dict[str, list[float]],
    jumps: dict[str, float | None],
    path: Path,
) -> None:
    """Writes a PNG.

    Args:
        chunks: frames of each chunk. psnr: of each, in dB.
        deltas: for both sides, how much the video changes from each frame to the next. jumps: its discontinuity.
    """
    from matplotlib.figure import Figure

    seams = list(accumulate(chunks))[:-1]
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    known = [value for value in psnr if math.isfinite(value)]
    top = max(known, default=1.0) * 1.15
    lefts = [0, *seams]
    heights = [min(value, top) for value in psnr]
    above.bar(lefts, heights, width=chunks, align="edge", color="#4477aa", edgecolor="white")
    for left, size, height, value in zip(lefts, chunks, heights, psnr, strict=True):
        text = f"{value:.1f}" if math.isfinite(value) else "equal"
        above.annotate(text, (left + size / 2, height), ha="center", va="bottom", fontsize=7)
    above.set_ylim(0, top * 1.15)
    above.set_ylabel("PSNR of the chunk, dB", fontsize=9)
    for side, values in deltas.items():
        jump = jumps[side]
        label = f"{side}: chunk discontinuity {'undefined' if jump is None else f'{jump:.2f}'}"
        colour, width = LINES[side]
        # The change from frame t to t+1 belongs to the line between them.
        below.plot(range(1, len(values) + 1), values, color=colour, linewidth=width, label=label)
    for axes in (above, below):
        for seam in seams:
            axes.axvline(seam, color="#bbbbbb", linewidth=0.6, linestyle=":", zorder=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    below.set_ylim(bottom=0)
    below.set_xlabel("frame; dotted lines are where chunks meet", fontsize=9)
    below.set_ylabel("mean |frame t+1 - frame t|", fontsize=9)
    below.set_title(
        "Discontinuity: mean of the K-1 largest changes over the mean of all, K chunks (Forcing-KV). "
        "Frame difference stands for the paper's optical flow.",
        fontsize=8,
        loc="left",
    )
    below.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=140, format="png")
