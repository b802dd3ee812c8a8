"""Head Forcing: local, anchor and memory heads with positions of their own (arXiv 2605.14487)."""

from __future__ import annotations

from os import PathLike

from ..policy import Policy, parse_rule
from .labels import Labels, need_classes
from .registry import preset

CLASSES = ("local", "anchor", "memory")


@preset("head_forcing")
def head_forcing(
    labels: Labels | str | PathLike[str],
    local_window: int = 3,
    anchor_sink: int = 3,
    anchor_window: int = 3,
    memory_sink: int = 3,
    memory_slots: int = 6,
    memory_window: int = 6,
    novelty: float = 0.9,
    unit: str = "frame",
    evict: str = "fifo",
    position_range: int = 21,
) -> Policy:
    """A template: local heads a window, anchor heads a sink and a window, memory heads episodes besides.

    Episodes are written when a chunk is committed, if no slot holds a unit whose mean raw key is more similar than
    `novelty`; they come from the frames that leave the window. Positions are contiguous for every head: what it reads,
    in order, then the chunk, so that all distances stay below `position_range`.

    The paper publishes neither sizes nor code: every number is a parameter, and the defaults are ours. Followed from it
    are the three roles, the episodic memory with novelty-triggered writes, and the re-encoded positions.

    Args:
        labels: which heads are what (classes `local`, `anchor`, `memory`; heads that are not named are `memory`).
    """
    found = need_classes(labels, CLASSES, "memory")
    episodes = f"episodic({memory_slots}, unit={unit}, source=evicted(recent), write=novel({novelty}), evict={evict})"
    memory = f"(sink({memory_sink}) | {episodes} | window({memory_window}) as recent)@contiguous"
    classes = {
        "local": parse_rule(f"(window({local_window}))@contiguous"),
        "anchor": parse_rule(f"(sink({anchor_sink}) | window({anchor_window}))@contiguous"),
        "memory": parse_rule(memory),
    }
    heads = found.heads_besides("memory")
    return Policy(classes, default="memory", heads=heads, position_range=position_range, made_for=found.shape)
