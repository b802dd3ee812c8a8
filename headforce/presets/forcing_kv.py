"""Forcing-KV: static heads keep a sink and the newest frame, dynamic heads the segments that change (2605.09681)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from ..policy import Policy, Warmup, parse_rule
from .labels import Labels, need_classes
from .registry import preset

CLASSES = ("static", "dynamic")


@preset("forcing_kv")
def forcing_kv(
    labels: Labels | str | PathLike[str],
    sink: int = 1,
    static_window: int = 1,
    dynamic_window: int = 1,
    selected: int = 1,
    segments: int = 6,
    warmup_chunks: int = 2,
    ungrouped_layers: Sequence[int] = (0,),
) -> Policy:
    """Static heads read frame 0 and the newest frame; dynamic heads besides one frame's worth of segments.

    Segments are those of the frames that left the window at the last commit which resemble the next frame least. All
    dynamic heads keep the same ones, chosen in the first layer that has any. What was kept before is given up.

    Args:
        labels: which heads are what (classes `static`, `dynamic`; heads that are not named are `dynamic`).
        sink, static_window, dynamic_window, selected: frames. The code's `spatial_context_length`,
            `temporal_context_length` and `dynamic_context_length` are the last three; `selected=0` selects nothing, as
            the code does for 14B models (there with `dynamic_window=3, ungrouped_layers=()`).
        segments: of a frame (`num_frame_patch`).
        warmup_chunks: chunks in which every head reads sink and window: the code's `ar_start` plus one.
        ungrouped_layers: layers whose heads all go on so.

    Followed is the code (commit 50ac1f45) where it differs from the paper: the whole history is pruned in the warm-up
    too, layer 0 is never grouped, segments are ranked over all frames at once instead of frame by frame, and keys are
    compared as they are stored, after RoPE. Not followed are its known defects: indices taken from the first video of a
    batch, state shared by all models of a process, keys and values that part company in rings of more than three
    frames, and the current chunk counted twice in the clean pass of 14B models. A keep ratio is not a parameter: the
    code accepts only ratios that fill whole frames, which `selected` counts.
    """
    found = need_classes(labels, CLASSES, "dynamic")
    longest = max(static_window, dynamic_window)
    everywhere = parse_rule(f"sink({sink}) | window({longest})" if sink else f"window({longest})")
    front = f"sink({sink}) | " if sink else ""
    middle = f"select({selected}, segments={segments}, source=evicted(recent), scope=model) | " if selected else ""
    classes = {
        "static": parse_rule(f"{front}window({static_window})"),
        "dynamic": parse_rule(f"{front}{middle}window({dynamic_window}) as recent"),
        "ungrouped": everywhere,
    }
    heads = {layer: of for layer, of in found.heads_besides("dynamic").items() if layer not in ungrouped_layers}
    return Policy(
        classes,
        default="dynamic",
        heads=heads,
        layers=dict.fromkeys(ungrouped_layers, "ungrouped"),
        warmup=Warmup(warmup_chunks, everywhere) if warmup_chunks else None,
        made_for=found.shape,
    )
