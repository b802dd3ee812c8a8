"""Pyramid Forcing against a plain state machine of its published code (the Python path), and its published vectors.

V1 to V7 name the vectors of the specification that the tests were written from.
"""

from pathlib import Path

import pytest

from headforce.lowering.footprint import footprint
from headforce.lowering.preview import preview
from headforce.policy import Schedule
from headforce.presets import Labels, pyramid_forcing

DATA = Path(__file__).parents[3] / "shared" / "data"
LABELS = Labels((("wave", "anchor", "veil"),))
WAVE, ANCHOR, VEIL = range(3)
BLOCK = 4


class Head:
    """The state of one head of the published code: a sink, a middle and the recent frames, chunk by chunk."""

    def __init__(self, kind, quirks=()):
        self.kind = kind
        self.pinned = 1 if kind == "anchor" and "pinned_frame" in quirks else 0
        self.sink_size = 1 if kind == "wave" else 3
        self.sink, self.recent, self.ring, self.fifo, self.seen, self.done = [], [], {}, [], {}, []

    def run(self, frames):
        """query frame -> ({past frame: position}, {block: position}); then the clean pass commits the chunk."""
        sink, recent = list(self.sink), list(self.recent)
        for t in frames:
            if len(sink) < self.sink_size:
                sink.append(t)
            else:
                recent = [*recent, t]
                recent = [*recent[:-4][: self.pinned], *recent[-4:]]
        reads = {q: self.read(q, sink, recent, frames) for q in frames}
        self.sink, self.recent = sink, recent
        for t in frames:
            self.insert(t)
        return reads

    def read(self, q, sink, recent, frames):
        far = max(0, q - 21)
        places = {f: far for f in sink if f not in frames}
        places.update({f: f for f in recent if f not in frames})
        blocks = {}
        if self.kind == "veil":
            for block in self.done:
                if block * BLOCK > 0 and block * BLOCK + 3 < q - 3:
                    blocks[block] = (2 * block * BLOCK + 3) // 2
        else:
            middle = self.ring.get(q % 6, []) if self.kind == "wave" else self.fifo
            for t in middle:
                if 0 < t < q - 3 and t not in places:
                    places[t] = far
        return places, blocks

    def insert(self, t):
        self.ring[t % 6] = [*self.ring.get(t % 6, []), t][-4:]
        if t % 6 == 0:
            self.fifo = [*self.fifo, t][-4:]
        self.seen[t // BLOCK] = self.seen.get(t // BLOCK, 0) + 1
        if self.seen[t // BLOCK] == BLOCK:
            self.done = [*self.done, t // BLOCK][-4:]


def planned(schedule, policy=None):
    """For every chunk, head -> {query: ({frame: position}, {block: position})}."""
    bound = (policy or pyramid_forcing(LABELS)).bind(layers=1, heads=3, tokens=1560)
    for plan in preview(bound, Schedule(schedule)):
        found = []
        for head in range(3):
            of_head = {}
            for reading in plan.of(0, head).readings:
                frames = {int(f): int(f + shift) for f, shift in reading.frames}
                parts = [pair for item in reading.parts for pair in zip(item.parts, item.positions, strict=True)]
                assert all(part.of == 4 and len(part.frames) == BLOCK for part, _ in parts)
                blocks = {part.frames[0] // BLOCK: position for part, position in parts}
                of_head.update(dict.fromkeys(reading.queries, (frames, blocks)))
            found.append(of_head)
        yield plan.chunk, found


@pytest.mark.parametrize("schedule", [(3,) * 41, (1,) * 80, (1, *(3,) * 30)], ids=["threes", "ones", "one and threes"])
@pytest.mark.parametrize("quirks", [(), ("pinned_frame",)], ids=["plain", "quirks"])
def test_reads_and_positions_are_those_of_the_code(schedule, quirks):
    """At chunks 0 to 40. In the first chunks the code keeps current frames in its sink, at position 0: not so here."""
    heads = [Head(kind, quirks) for kind in ("wave", "anchor", "veil")]
    for chunk, found in planned(schedule, pyramid_forcing(LABELS, quirks=quirks)):
        for head, of_head in zip(heads, found, strict=True):
            assert of_head == head.run(list(chunk.queries)), (chunk, head.kind)


def at(start):
    (found,) = [found for chunk, found in planned((3,) * (start // 3 + 1)) if chunk.start == start]
    return found


def frames(found, head, query):
    return set(found[head][query][0])


def test_v1_chunk_30():
    found = at(30)
    assert frames(found, WAVE, 30) == {0, 6, 12, 18, 24, 29}
    assert frames(found, WAVE, 31) == {0, 7, 13, 19, 25, 29}
    assert frames(found, WAVE, 32) == {0, 8, 14, 20, 26, 29}
    for query in (30, 31, 32):
        assert frames(found, ANCHOR, query) == {0, 1, 2, 6, 12, 18, 24, 29}
        assert frames(found, VEIL, query) == {0, 1, 2, 29}


@pytest.mark.parametrize(
    ("start", "wave", "anchor"),
    [
        (0, [set()] * 3, [set()] * 3),
        (3, [{0, 2}] * 3, [{0, 1, 2}] * 3),
        (6, [{0, 5}, {0, 1, 5}, {0, 2, 5}], [{0, 1, 2, 5}] * 3),
        # Frame 6 lies within the four newest frames of query frame 9, and of no other.
        (9, [{0, 3, 8}, {0, 4, 8}, {0, 5, 8}], [{0, 1, 2, 8}, {0, 1, 2, 6, 8}, {0, 1, 2, 6, 8}]),
        (120, None, [{0, 1, 2, 96, 102, 108, 114, 119}] * 3),
    ],
)
def test_v1_other_chunks(start, wave, anchor):
    found = at(start)
    assert [frames(found, ANCHOR, q) for q in range(start, start + 3)] == anchor
    if wave is not None:
        assert [frames(found, WAVE, q) for q in range(start, start + 3)] == wave


@pytest.mark.parametrize(("query", "seen_at"), [(0, 0), (17, 0), (18, 0), (21, 0), (22, 1), (100, 79)])
def test_v2_where_sinks_and_middle_frames_are_seen(query, seen_at):
    start = query // 3 * 3
    for head in (WAVE, ANCHOR):
        places = dict(at(start)[head][query][0])
        assert places.pop(start - 1, start - 1) == start - 1
        assert set(places.values()) <= {seen_at}
        assert places or not start


@pytest.mark.skipif(not DATA.exists(), reason="the published label files are not here")
def test_v3_the_published_labels():
    labels = Labels.load(DATA / "pyramid_best_labels.csv")
    assert labels.counts() == {"wave": 156, "anchor": 172, "veil": 32}


def test_v4_merged_blocks_and_their_middle():
    assert at(30)[VEIL][31][1] == {3: 13, 4: 17, 5: 21, 6: 25}


def test_v5_the_block_that_is_too_near():
    assert set(at(30)[VEIL][30][1]) == {3, 4, 5}
    assert set(at(30)[VEIL][31][1]) == {3, 4, 5, 6}


def test_v6_the_ring_goes_round():
    """Frames 24 to 29 put out frames 0 to 5 of the same phase."""
    assert frames(at(24), WAVE, 24) == {0, 6, 12, 18, 23}
    assert frames(at(27), WAVE, 27) == {0, 3, 9, 15, 21, 26}
    assert frames(at(33), WAVE, 33) == {0, 9, 15, 21, 27, 32}


def test_v7_multiples_of_six_after_frame_30():
    assert frames(at(33), ANCHOR, 34) == {0, 1, 2, 12, 18, 24, 30, 32}


def test_positions_stay_in_range_past_the_tables_of_the_models():
    """3000 frames; RoPE tables have 1024 rows. Distances are at most 21."""
    policy = pyramid_forcing(LABELS)
    assert policy.position_range == 21  # planning refuses anything beyond
    *_, (chunk, found) = planned((3,) * 1000, policy)
    far = max(q - p for head in found for q, (a, b) in head.items() for p in (*a.values(), *b.values()))
    assert chunk.start == 2997
    assert far == 21


@pytest.mark.skipif(not DATA.exists(), reason="the published label files are not here")
def test_the_pool_is_smaller_than_the_published_one():
    """At 480p and with the current chunk at most 5.3 GB, where the authors' code holds 8.9 GB."""
    bound = pyramid_forcing(DATA / "pyramid_best_labels.csv").bind(layers=30, heads=12, tokens=1560)
    size = footprint(bound, Schedule((3,) * 40), 2 * 1560 * 128 * 2)
    capacity = {bound.classes[layer][h]: size.capacity[layer][h].peak for layer in range(30) for h in range(12)}
    assert capacity == {"wave": 25, "anchor": 8, "veil": 7}
    assert size.pool_bytes == pytest.approx(5.256e9, rel=1e-3)
