"""Deep Forcing against a plain state machine of its published code. V8 names the vector of the specification."""

import pytest

from headforce.errors import HeadforceError
from headforce.lowering.preview import preview
from headforce.policy import BUSIEST, Chunk, Commit, HeadMemory, Policy, Schedule, parse_rule
from headforce.presets import deep_forcing

TOKENS = 4
"""Of a frame, for the machine: what is chosen is for queries and keys to say, here it is the newest."""


def published(chunks, sink=10, budget=16, recent=4, window=21, n=3, reuse=7):
    """Chunk by chunk of `n` frames: (whole frames read, tokens read, first position of the sink)."""
    cache = []  # tokens (frame, index), in order; whole frames but for those chosen
    counts, shift = {}, 0
    for i in range(chunks):
        start = i * n
        current = [(f, t) for f in range(start, start + n) for t in range(TOKENS)]
        if len(cache) + len(current) > window * TOKENS:
            joined = cache + current
            fixed, last = joined[: sink * TOKENS], joined[-recent * TOKENS :]
            pool = [x for x in joined[sink * TOKENS : -recent * TOKENS] if counts.get(x, 0) < reuse]
            chosen = sorted(pool)[-(budget - sink - recent) * TOKENS :]
            for token in chosen:
                counts[token] = counts.get(token, 0) + 1
            cache = [*fixed, *chosen, *last][: -n * TOKENS]
            # Everything behind the sink, the new chunk but for its own frames: the sink ends where that begins.
            shift = start - (budget - sink) - sink
        whole = {f for f, _ in cache if all((f, t) in cache for t in range(TOKENS))}
        parts = {x for x in cache if counts.get(x)}
        yield whole - {f for f, _ in parts}, parts, shift
        cache = cache + current


def planned(policy, schedule, sink=10):
    """For every chunk, (whole frames, segments, first position of the sink) of every query frame."""
    bound = policy.bind(layers=1, heads=1, tokens=TOKENS)
    for plan in preview(bound, Schedule(schedule)):
        (reading,) = plan.of(0, 0).readings
        whole = {int(f) for f in reading.frames[:, 0]}
        places = {int(f): int(f + shift) for f, shift in reading.frames}
        parts = {(part.at, part.index) for item in reading.parts for part in item.parts}
        assert all(p.at == at for item in reading.parts for p, at in zip(item.parts, item.positions, strict=True))
        assert all(places[f] == f for f in whole if f >= sink)
        yield whole, parts, places.get(0, 0)


@pytest.mark.parametrize("reuse", [7, 2])
def test_reads_are_those_of_the_code_at_chunks_0_to_40(reuse):
    found = planned(deep_forcing(reuse=reuse), (3,) * 41)
    for i, (mine, theirs) in enumerate(zip(found, published(41, reuse=reuse), strict=True)):
        assert mine == theirs, i


def test_v8_the_rhythm():
    """16 and 19 frames in turn from frame 21 on; the sink begins at 5 at frame 21, and at 11 at frame 27."""
    reads = [(len(whole) + len(parts) / TOKENS + 3, at) for whole, parts, at in planned(deep_forcing(), (3,) * 12)]
    assert reads[:7] == [(3, 0), (6, 0), (9, 0), (12, 0), (15, 0), (18, 0), (21, 0)]
    assert reads[7:] == [(16, 5), (19, 5), (16, 11), (19, 11), (16, 17)]


def test_v8_a_deep_sink_alone():
    """The sink of 14 frames and a window of 7 begins at 0, 3 and 6 at frames 21, 24 and 27."""
    policy = Policy({"a": parse_rule("sink(14)@carry(21, 21, 3) | span(7)")}, "a")
    at = [places for _, _, places in planned(policy, (3,) * 10, sink=14)]
    assert at[7:] == [0, 3, 6]


def test_frames_at_a_time():
    """Chunks of one frame, as frame-wise models make them."""
    *_, (whole, parts, at) = planned(deep_forcing(chunk=1), (1,) * 40)
    sizes = [len(w) + len(p) / TOKENS + 1 for w, p, _ in planned(deep_forcing(chunk=1), (1,) * 40)]
    assert sizes[21:28] == [16, 17, 18, 19, 20, 21, 16]
    assert (len(whole), len(parts), at) == (sizes[-1] - 3, 2 * TOKENS, 39 - 16)


def test_a_token_is_chosen_so_often_and_no_more():
    rule = parse_rule("select(1, segments=2, source=evicted(recent), pool=all, reuse=2) | window(1) as recent")
    memory, held = HeadMemory(rule), []
    # The oldest are always the best: without a limit they would stay for ever.
    oldest = type(BUSIEST)(BUSIEST.novel, lambda store, pool, count: pool - pool.newest(max(0, len(pool) - count)))
    for start in range(6):
        memory.commit(Chunk(start, start, 1), Chunk(start + 1, start + 1, 1), oldest, Commit())
        held.append(str(memory.held.get("select", "none")))
    assert held == ["none", "0-1", "0-1", "4-5", "4-5", "8-9"]


def test_sizes_that_leave_nothing_to_select():
    with pytest.raises(HeadforceError, match="HF-OP-ARG"):
        deep_forcing(budget=14)
