"""Reward Forcing's cache as published, against `examples/plugin_ema_sink`. A program, so that nothing stays registered.

A frame is a mapping of weights over frames. The published code is github.com/JaydenLyh/Reward-Forcing, commit 4317f5a0,
`wan/modules/causal_model.py`: a cache of 9 frames, a sink of 3, chunks of 3, alpha 0.999.
"""

from __future__ import annotations

from collections import Counter

from headforce_ema_sink.op import EmaSink

from headforce.policy import BUSIEST, Chunk, HeadMemory, parse_rule

CACHE, SINK, CHUNK, ALPHA = 9, 3, 3, 0.999
RULE = parse_rule("(ema_sink(3, source=evicted(recent)) | span(6) as recent)@contiguous")


def published(cache: list[dict[int, float]], start: int) -> list[dict[int, float]]:
    """The cache once the chunk at `start` is written."""
    if len(cache) + CHUNK > CACHE:
        sink, evicted, rest = cache[:SINK], cache[SINK : SINK + CHUNK], cache[SINK + CHUNK :]
        cache = [_blend(old, new) for old, new in zip(sink, evicted, strict=True)] + rest
    return cache + [{start + i: 1.0} for i in range(CHUNK)]


def _blend(old: dict[int, float], new: dict[int, float]) -> dict[int, float]:
    total: Counter[int] = Counter()
    for frame, weight in old.items():
        total[frame] += ALPHA * weight  # type: ignore[assignment]
    for frame, weight in new.items():
        total[frame] += (1 - ALPHA) * weight  # type: ignore[assignment]
    return dict(total)


def ours(chunk: Chunk, memory: HeadMemory) -> list[tuple[int, dict[int, float]]]:
    """(position, weights) of everything that is read besides the chunk, in the order of positions."""
    (op,) = (term.op for term in RULE.stateful)
    assert isinstance(op, EmaSink)
    read = []
    for of_store in RULE.read_parts(chunk, chunk.start, memory.held):
        for part, position in zip(of_store.parts, of_store.positions, strict=True):
            (row,) = op.materialize_part(part, 1, 1)
            read.append((position, {frame: weight for (frame, _), weight in row.weights.items()}))
    for item in RULE.read(chunk, chunk.start, memory.held):
        read += [(position, {frame: 1.0}) for frame, position in zip(item.frames, item.positions, strict=True)]
    return sorted(read, key=lambda entry: entry[0])


def main() -> None:
    """Twenty chunks: the same weights at the same places."""
    cache: list[dict[int, float]] = []
    memory, before = HeadMemory(RULE), None
    for index in range(20):
        chunk = Chunk(index, index * CHUNK, CHUNK)
        cache = published(cache, chunk.start)
        if before is not None:
            memory.commit(before, chunk, BUSIEST)
        before, read = chunk, ours(chunk, memory)
        assert [position for position, _ in read] == list(range(chunk.start - len(read), chunk.start))
        for (_, weights), theirs in zip(read, cache[:-CHUNK], strict=True):
            assert weights.keys() == theirs.keys()
            assert max(abs(weights[frame] - theirs[frame]) for frame in weights) < 1e-11
    assert len(read[0][1]) == 18, "frames 0, 3, ..., 51 are in the first place of the sink"
    print("the same")


if __name__ == "__main__":
    main()
