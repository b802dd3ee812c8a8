"""Published cache policies that are functions of indices, against their exact published reads.

In our words `window(n)` counts committed frames only and `span(N)` counts the current chunk too.
"""

import pytest

from headforce.policy import Chunk, Policy, Schedule, oracle, parse_rule

WAVE = 'sink(1)@collapse(21) | stride(6, phase="query", last=4)@collapse(21) | window(1)'
ANCHOR = "sink(3)@collapse(21) | stride(6, phase=0, last=4)@collapse(21) | window(1)"


def reads(text, start, query, frames=3):
    """Frames that a query reads besides its chunk, as the plan and as the oracle have them."""
    rule, chunk = parse_rule(text), Chunk(start // frames, start, frames)
    found = oracle.interpret(rule, chunk, query)
    items = {f: p for item in rule.read(chunk, query) for f, p in zip(item.frames, item.positions, strict=True)}
    assert items == found
    return found


def held(text, chunks=60, frames=3):
    bound = Policy({"a": parse_rule(text)}, default="a", horizon=1000).bind(layers=1, heads=1)
    return bound.capacity(bound.distinct[0], Schedule((frames,) * chunks)).peak


# --- Pyramid Forcing (arXiv 2605.13111): wave and anchor heads ----------------------------------------------------


@pytest.mark.parametrize(
    ("start", "query", "frames"),
    [
        (0, 0, set()),
        (3, 3, {0, 2}),
        (3, 5, {0, 2}),
        (6, 6, {0, 5}),
        (6, 7, {0, 1, 5}),
        (6, 8, {0, 2, 5}),
        (9, 9, {0, 3, 8}),
        (9, 10, {0, 4, 8}),
        (21, 21, {0, 3, 9, 15, 20}),
        (30, 30, {0, 6, 12, 18, 24, 29}),
        (30, 31, {0, 7, 13, 19, 25, 29}),
        (30, 32, {0, 8, 14, 20, 26, 29}),
        (120, 120, {0, 96, 102, 108, 114, 119}),
    ],
)
def test_wave_heads(start, query, frames):
    assert set(reads(WAVE, start, query)) == frames


@pytest.mark.parametrize(
    ("start", "frames"),
    [
        (0, set()),
        (3, {0, 1, 2}),
        (6, {0, 1, 2, 5}),
        (9, {0, 1, 2, 6, 8}),
        (21, {0, 1, 2, 6, 12, 18, 20}),
        (30, {0, 1, 2, 6, 12, 18, 24, 29}),
        (120, {0, 1, 2, 96, 102, 108, 114, 119}),
    ],
)
def test_anchor_heads(start, frames):
    assert {frozenset(reads(ANCHOR, start, query)) for query in range(start, start + 3)} == {frozenset(frames)}


@pytest.mark.parametrize(("query", "seen_at"), [(0, 0), (17, 0), (18, 0), (21, 0), (22, 1), (100, 79)])
def test_sink_and_middle_frames_are_seen_at_one_position(query, seen_at):
    for text in (WAVE, ANCHOR):
        start = query // 3 * 3
        found = reads(text, start, query)
        newest = found.pop(start - 1, None)
        assert newest in (start - 1, None)
        assert set(found.values()) <= {seen_at}
        assert found or not start


def test_frames_that_wave_and_anchor_heads_hold():
    """The source counts 29 and 11 frames with the 3 of the current chunk.

    Anchor: 3 + 4 + 1 of history, and 3. Wave: its 24 ring frames are the newest 24, so the one recent frame is among
    them; the source stores that frame twice, and 1 + 24 + 3 = 28 are enough.
    """
    assert held(ANCHOR) == 11 - 3
    assert held(WAVE) == 29 - 3 - 1


# --- Self-Forcing, LongLive, Forcing-KV ---------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 3, 18, 21, 60])
def test_self_forcing_reads_21_frames_its_chunk_included(start):
    assert set(reads("span(21)", start, start)) == set(range(max(0, start + 3 - 21), start))
    assert held("span(21)") == 18


@pytest.mark.parametrize(
    ("start", "recent"), [(9, {3, 4, 5, 6, 7, 8}), (12, {6, 7, 8, 9, 10, 11}), (30, set(range(24, 30)))]
)
def test_longlive_keeps_3_sink_frames_and_up_to_6_recent_ones(start, recent):
    assert set(reads("sink(3) | span(9)", start, start)) == {0, 1, 2} | recent
    assert held("sink(3) | span(9)") + 3 == 12


def _rolled(window, sink, chunks, size=3):
    """The frames in a cache that rolls in place as Self-Forcing's does: what each chunk attends to."""
    slots: list[int] = []
    for start in range(0, chunks * size, size):
        evicted = max(0, size + len(slots) - window)
        slots = slots[:sink] + slots[sink + evicted :] + list(range(start, start + size))
        yield start, set(slots)


@pytest.mark.parametrize(("window", "sink"), [(21, 0), (12, 3), (12, 0), (9, 1)])
def test_a_rolled_cache_is_a_sink_and_a_span(window, sink):
    text = f"sink({sink}) | span({window - sink})" if sink else f"span({window})"
    for start, frames in _rolled(window, sink, 20):
        assert set(reads(text, start, start)) | set(range(start, start + 3)) == frames


@pytest.mark.parametrize("i", [1, 2, 3, 10])
def test_static_heads_of_forcing_kv(i):
    assert set(reads("sink(1) | window(1)", 3 * i, 3 * i)) == {0, 3 * i - 1}
    assert held("sink(1) | window(1)") + 3 == 5
