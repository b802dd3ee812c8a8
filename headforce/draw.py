"""Pictures of a policy: which frames each kind of head reads over time, as text and as PNG, and bytes over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .lowering.footprint import Footprint
from .lowering.plan import ChunkPlan, HeadPlan
from .lowering.preview import preview
from .policy import BoundPolicy, Policy, Schedule, parse_rule

CURRENT, UNREAD = "current chunk", "not read"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")  # Tol's bright scheme
_CURRENT_COLOUR = "#333333"


@dataclass(frozen=True)
class HeadKind:
    """Heads that are drawn together: one class, one rule."""

    name: str
    rule: str
    layer: int
    head: int
    count: int


def head_kinds(policy: BoundPolicy) -> list[HeadKind]:
    """The kinds of heads of a policy, with the first head of each as its example."""
    first: dict[tuple[str, str], tuple[int, int]] = {}
    count: dict[tuple[str, str], int] = {}
    for layer, row in enumerate(policy.rules):
        for head, rule in enumerate(row):
            key = (policy.classes[layer][head] or "native", rule.text)
            first.setdefault(key, (layer, head))
            count[key] = count.get(key, 0) + 1
    return [HeadKind(name, rule, *first[name, rule], count[name, rule]) for name, rule in first]


def reads_of(head: HeadPlan, plan: ChunkPlan) -> dict[int, str]:
    """frame -> the operator under which any query frame of the chunk reads it, or parts of it; the chunk's own frames
    included."""
    parts = [(item.kind, part) for reading in head.readings for item in reading.parts for part in item.parts]
    kinds = {frame: kind for kind, part in parts for frame in part.frames}
    kinds |= {frame: item.kind for reading in head.readings for item in reading.items for frame in item.frames}
    return kinds | (dict.fromkeys(plan.chunk.queries, CURRENT) if head.reads_chunk else {})


def text_report(policy: BoundPolicy, plans: Sequence[ChunkPlan], size: Footprint, width: int) -> RenderableType:
    """The policy for a terminal `width` columns wide: a table of the kinds of heads, then a picture of each."""
    kinds = head_kinds(policy)
    table = Table(title="What each kind of head remembers", title_justify="left")
    for column in ("class", "heads", "rule", "frames read", "peak", "steady"):
        table.add_column(column, justify="left" if column in ("class", "rule") else "right", overflow="fold")
    for kind in kinds:
        capacity = size.capacity[kind.layer][kind.head]
        kept = plans[-1].of(kind.layer, kind.head).kept
        # As `Text`: in a string, brackets of a name would be taken for rich's markup.
        table.add_row(
            Text(kind.name), str(kind.count), Text(kind.rule), f"{kept:g}", str(capacity.peak), str(capacity.steady)
        )
    return Group(table, *(_strip(kind, plans, width) for kind in kinds), _sums(size))


def sketch(rule: str, schedule: str) -> str:
    """What one head with `rule` reads, as plain text: a line for each chunk of `schedule`, a column for each frame.

    >>> print(sketch("sink(1) | window(2)", "3x4"))
          0  ###
          3  SWW###
          6  S···WW###
          9  S······WW###
    chunk at  frame 0-11;  # current chunk, S sink, W window
    """
    chunks = Schedule.parse(schedule)
    bound = Policy({rule: parse_rule(rule)}, default=rule, horizon=chunks.frames).bind(layers=1, heads=1)
    return _lines(head_kinds(bound)[0], list(preview(bound, chunks)), 0).plain


def _sums(size: Footprint) -> Text:
    share = f" ({size.pool_bytes / size.dense_bytes:.0%} of native)" if size.dense_bytes else ""
    steady = _bytes(size.steady_bytes + size.current_bytes)
    after = f"\nafter the warm-up {_bytes(size.steady_bytes)} of history, {steady} in all"
    return Text(
        f"history {_bytes(size.history_bytes)} + current chunk {_bytes(size.current_bytes)}"
        f" = {_bytes(size.pool_bytes)}{share}; native {_bytes(size.dense_bytes)}"
        + (after if size.steady_bytes < size.history_bytes else "")
    )


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def _strip(kind: HeadKind, plans: Sequence[ChunkPlan], width: int) -> RenderableType:
    """One line a chunk, one column a frame; the newest frames where the terminal is too narrow for all."""
    last = plans[-1].chunk.stop
    begin = max(0, last - max(1, width - 14))
    wide = min(width, last - begin + 14 + 30)
    return Panel(
        _lines(kind, plans, begin), title=Text(f"{kind.name} ({_heads(kind)})"), title_align="left", width=wide
    )


def _heads(kind: HeadKind) -> str:
    return f"{kind.count} head" + "s" * (kind.count > 1)


def _lines(kind: HeadKind, plans: Sequence[ChunkPlan], begin: int) -> Text:
    last = plans[-1].chunk.stop
    lines = Text()
    signs: dict[str, str] = {}
    for plan in plans:
        reads = reads_of(plan.of(kind.layer, kind.head), plan)
        lines.append(f"{plan.chunk.start:>7}  ", style="dim")
        for frame in range(begin, min(plan.chunk.stop, last)):
            name = reads.get(frame, UNREAD)
            if name == UNREAD:
                lines.append("·", style="dim")
            elif name == CURRENT:
                lines.append("#", style="bold")
            else:
                sign = signs.setdefault(name, _free_sign(name, signs))
                lines.append(sign, style=COLOURS[list(signs).index(name) % len(COLOURS)])
        lines.append("\n")
    legend = ", ".join(f"{sign} {name}" for name, sign in signs.items())
    lines.append(f"chunk at  frame {begin}-{last - 1};  # {CURRENT}{', ' if legend else ''}{legend}", style="dim")
    return lines


def _free_sign(name: str, signs: dict[str, str]) -> str:
    """The first letter of the name that no other operator has, or else of the alphabet."""
    return next(s for s in name.upper() + ascii_uppercase if s.isalpha() and s not in signs.values())


def save_reads(policy: BoundPolicy, plans: Sequence[ChunkPlan], path: str | Path) -> None:
    """Writes a PNG: for each kind of head, frames across and chunks down, coloured by the operator that reads."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    kinds = head_kinds(policy)
    names = [UNREAD, CURRENT]
    grids = []
    frames = plans[-1].chunk.stop
    for kind in kinds:
        grid = [[0] * frames for _ in plans]
        for row, plan in zip(grid, plans, strict=True):
            for frame, name in reads_of(plan.of(kind.layer, kind.head), plan).items():
                if name not in names:
                    names.append(name)
                row[frame] = names.index(name)
        grids.append(grid)
    colours = ["#f2f2f2", _CURRENT_COLOUR, *(COLOURS[i % len(COLOURS)] for i in range(len(names) - 2))]
    figure = Figure(figsize=(9, 0.8 + len(kinds) * (0.7 + 0.1 * len(plans))), layout="constrained")
    for axes, kind, grid in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, grids, strict=True):
        axes.imshow(
            grid,
            cmap=ListedColormap(colours),
            vmin=0,
            vmax=len(colours) - 1,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_title(f"{kind.name} ({_heads(kind)}): {kind.rule}", fontsize=9, loc="left", wrap=True)
        axes.set_ylabel("chunk", fontsize=8)
        axes.tick_params(labelsize=7)
    axes.set_xlabel("frame", fontsize=8)
    handles = [Patch(facecolor=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=140, format="png")


def save_bytes(
    starts: Sequence[int],
    history: Mapping[str, Sequence[int]],
    current: Sequence[int],
    held: Sequence[int],
    dense: int,
    path: str | Path,
) -> None:
    """Writes a PNG: bytes of K and V, chunk by chunk.

    Args:
        starts: the first frame of each chunk.
        history: class -> bytes of the past frames that its heads hold. current: bytes of the current chunk.
        held: bytes of the pools, used or not. dense: bytes of the unmodified model's cache.
    """
    from matplotlib.figure import Figure

    mib = [value / 2**20 for value in (*current, *held, dense)]
    count = len(starts)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    bottom = mib[:count]
    axes.bar(range(count), bottom, color=_CURRENT_COLOUR, label=CURRENT, width=0.72)
    for colour, (name, values) in zip(COLOURS[::-1], history.items(), strict=False):
        heights = [value / 2**20 for value in values]
        axes.bar(range(count), heights, bottom=bottom, color=colour, label=f"history of {name} heads", width=0.72)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.step(range(count), mib[count:-1], where="mid", color="#000000", linewidth=1.8, label="held by headforce")
    axes.axhline(mib[-1], color="#888888", linestyle="--", linewidth=1.8, label="dense cache")
    axes.set_xticks(range(count), [str(start) for start in starts])
    axes.set_xlabel("first frame of the chunk", fontsize=9)
    axes.set_ylabel("K and V, MiB", fontsize=9)
    axes.set_ylim(0, 1.08 * max(*mib[count:], *bottom))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    figure.savefig(path, dpi=140, format="png")
