"""Pyramid Forcing: heads that see the past in waves, at anchors, or through a veil (arXiv 2605.13111)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from ..policy import Policy, parse_rule
from .labels import Labels, need_classes
from .registry import need_quirks, preset

CLASSES = ("wave", "anchor", "veil")


@preset("pyramid_forcing")
def pyramid_forcing(
    labels: Labels | str | PathLike[str],
    wave_sink: int = 1,
    sink: int = 3,
    period: int = 6,
    waves: int = 4,
    interval: int = 6,
    anchors: int = 4,
    patch: int = 2,
    blocks: int = 4,
    recent: int = 4,
    distance: int = 21,
    quirks: Sequence[str] = (),
) -> Policy:
    """Wave heads read frames in phase with each query frame, anchor heads every sixth frame, veil heads means.

    All read a sink and the newest frames besides. Sinks and middle frames are seen at one distance, that of the window
    the model was trained with; means stand at the middle of their frames.

    Args:
        labels: which heads are what (classes `wave`, `anchor`, `veil`; heads that are not named are `anchor`).
        wave_sink, sink: frames of the sinks, of wave heads and of the others.
        period, waves: a wave head reads the newest `waves` committed frames that lie a multiple of `period` back.
        interval, anchors: an anchor head reads the newest `anchors` multiples of `interval`.
        patch, blocks: a veil head reads the newest `blocks` blocks of `patch`**2 frames, of which every cell of `patch`
            x `patch` tokens became one. The cells have to divide the grid of tokens.
        recent: newest frames, counted with the current chunk as the paper does.
        distance: at which sinks and middle frames are seen, and the largest distance of all.
        quirks: defects of the code that are wanted. `pinned_frame`: anchor heads read the first frame behind the sink
            for ever, at its own position, so that its distance grows without end.

    Followed is the Python path of the code, which leaves out middle frames and blocks that are not older than `recent`
    frames before the query frame, read or not; and blocks that reach into the sink. Never followed are the defects of
    the path in C++ (current frames read twice in the clean pass, merged blocks that hold each other's data) and two of
    both: the frames of the first chunk are current frames here, at their own positions, not a sink at position 0; and
    the clean pass reads what the noisy ones read, where the code has pushed out the oldest middle frame by then.
    """
    pinned = "pinned_frame" in need_quirks(quirks, "pinned_frame")
    found = need_classes(labels, CLASSES, "anchor")
    far, old = f"@collapse({distance})", f"& older({recent - 1}) " if recent > 1 else ""
    wave = f'stride({period}, phase="query", last={waves}){far} {old}'
    anchor = f"stride({interval}, phase=0, last={anchors}){far} {old}"
    veil = f"merge({patch**2}, height={patch}, width={patch}, last={blocks}) {old}"
    classes = {
        "wave": parse_rule(f"sink({wave_sink}){far} | {wave}| span({recent})"),
        "anchor": parse_rule(f"sink({sink}){far} | {anchor}| span({recent})" + f" | sink({sink + 1})" * pinned),
        "veil": parse_rule(f"sink({sink}){far} | {veil}| span({recent})"),
    }
    heads = found.heads_besides("anchor")
    within = None if pinned else distance
    return Policy(classes, default="anchor", heads=heads, position_range=within, made_for=found.shape)
