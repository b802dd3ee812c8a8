"""Pictures of benchmarks: for every case the variants below each other, and beside them a bar for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Panel = tuple[str, Mapping[str, float | None]]
"""A title, and the number of each variant; None where there is none."""

OURS, OTHERS = "tab:blue", "0.6"


def draw(rows: Sequence[Sequence[Panel]], path: Path, caption: str = "") -> None:
    """One picture of `rows` of panels, each row over the same variants; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    heights = [0.6 + 0.26 * len(row[0][1]) for row in rows]
    figure = Figure(figsize=(12, 0.6 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
    for axes_of_row, row in zip(panels, rows, strict=True):
        for axes, (title, numbers) in zip(axes_of_row, row, strict=True):
            colours = [OURS if "headforce" in name else OTHERS for name in numbers]
            bars = axes.barh(list(numbers), [number or 0 for number in numbers.values()], color=colours)
            axes.bar_label(bars, ["" if v is None else f"{v:.3g}" for v in numbers.values()], padding=3, fontsize=8)
            axes.set_title(title, fontsize=9, loc="left")
            axes.tick_params(labelsize=8)
            axes.margins(x=0.15)
            axes.invert_yaxis()
        for axes in axes_of_row[1:]:
            axes.set_yticklabels([])
    if caption:
        figure.supxlabel(caption, fontsize=7, color="0.4", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
