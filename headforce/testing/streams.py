"""Hypothesis strategies of whole streams: a policy, the shape of a model, and how operands lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
from ..policy import parse_rule
from .rig import Rig
from .strategies import policies

LAYERS, HEADS = 2, 3
NATIVE = parse_rule("sink(1) | span(7)")
LOW = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def rigs(draw: st.DrawFn, dtypes: Sequence[torch.dtype], targets: Sequence[str], *, least_rows: int = 1) -> Rig:
    """Streams of two layers of three heads, before their first pass; frames of `least_rows` rows and a few more."""
    half = draw(st.integers(1, 5))
    first = draw(st.integers(0, half))
    policy = draw(policies(LAYERS, HEADS, horizon=40)).bind(layers=LAYERS, heads=HEADS, native=NATIVE)
    return Rig(
        policy,
        draw(st.sampled_from(list(targets))),
        dtype=draw(st.sampled_from(list(dtypes))),
        batch=draw(st.integers(1, 2)),
        tokens=draw(st.integers(least_rows, least_rows + 3)),
        head_dim=2 * half,
        value_dim=draw(st.none() | st.integers(1, 9)),
        style=draw(st.sampled_from([INTERLEAVED, SPLIT_HALF])),
        first_pair=first,
        pairs=draw(st.integers(0, half - first)),
        canonical=draw(st.booleans()),
        strided=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


def sizes(chunks: int = 6, frames: int = 4) -> st.SearchStrategy[list[int]]:
    """Frames of up to `chunks` chunks, all of one size or each of its own."""
    drawn = st.lists(st.integers(1, frames), min_size=1, max_size=chunks)
    return drawn | drawn.map(lambda drawn: [drawn[0]] * chunks)
