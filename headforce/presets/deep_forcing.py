"""Deep Forcing: a deep sink that is carried along, and the tokens that queries ask for (arXiv 2512.05081)."""

from __future__ import annotations

from ..policy import Policy, parse_rule
from .registry import preset


@preset("deep_forcing")
def deep_forcing(
    sink: int = 10,
    budget: int = 16,
    recent: int = 4,
    window: int = 21,
    chunk: int = 3,
    reuse: int | None = 7,
    segments: int | str = "token",
) -> Policy:
    """All heads read a sink of ten frames, two frames' worth of tokens, and the newest frames.

    Nothing is let go until the window is full. From then on every second chunk prunes: of what lies between the sink
    and the newest frames, and of the tokens held, those are kept that the queries ask for most, the same ones for all
    heads of a layer. The sink is moved along in time when that happens, so that it ends where the rest begins.

    Args:
        sink, budget, recent, window: frames, counted with a chunk of `chunk` frames as the code does: `budget` is all
            that is left after pruning, `recent` the newest of it, `window` what the model was trained with.
        chunk: frames of a chunk. Pruning happens whenever another one would not fit in the window.
        reuse: how often a token may be chosen (`topc_max_reuse`), None for ever.
        segments: single tokens, or so many runs of tokens to a frame, which plan faster.

    Followed is the code (as preserved in the fork Nizben/Spectral_C at ea9961a): sizes, the rhythm of 16 and 19
    frames, the sink's moves, tokens at their own positions, the limit of reuse. Not followed: the code scores in the
    first noisy pass of a chunk, by rotated queries of which three quarters are of that pass, nearly pure noise; here
    tokens are scored when the chunk before is committed, by the mean query of its last, clean pass.
    """
    first, every = window // chunk * chunk, ((window - budget) // chunk + 1) * chunk
    select = f"select({budget - sink - recent}, segments={segments}, score=qk, source=evicted(recent), pool=all"
    select += ", scope=layer" + (f", reuse={reuse})" if reuse else ")")
    rule = f"sink({sink})@carry({budget}, {first}, {every}) | {select} | paced({recent - chunk}, {first}, {every})"
    return Policy({"all": parse_rule(f"{rule} as recent")}, default="all")
