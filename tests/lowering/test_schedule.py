"""The order and the cuts of a layer's work: all of it once, in the room that there is, and no later than before."""

import heapq
from itertools import chain, product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from headforce.kernels.reference import READ_FIELDS
from headforce.lowering.cuts import MOST_PARTS, PARTS, best_parts, makespan, predicted
from headforce.lowering.schedule import ENOUGH, TILE, part_tiles, programs, schedule

PROCESSORS = st.sampled_from([0, 1, 20, 132])


@st.composite
def layers(draw):
    """Heads of as many query rows, each with its rows shared out among up to three reads, and the rows they read."""
    tokens = draw(st.sampled_from([1, 127, 128, 300, 1560, 4680]))
    heads = []
    for _ in range(draw(st.integers(1, 16))):
        ends = sorted(draw(st.lists(st.integers(0, tokens), max_size=2)))
        rows = [b - a for a, b in zip([0, *ends], [*ends, tokens], strict=True)]
        heads.append([(r, draw(st.integers(0, 40_000))) for r in [*rows, 0, 0][:3]])
    return tokens, heads


def layer(reads):
    """Tables of reads of (query rows, rows that are read), one for each head."""
    table = np.zeros((1, len(reads), len(READ_FIELDS)), dtype=np.int32)
    table[0, :, 1] = np.arange(len(reads))
    table[0, :, 3] = [rows for rows, _ in reads]
    return table, np.array([[keys for _, keys in reads]], dtype=np.int64)


def planned(reads, processors, queries, tokens):
    room = part_tiles(len(reads), queries, tokens, processors)
    return schedule(*layer(reads), processors, room)[0].tolist(), room


def tiles_of(rows, height=TILE):
    return -(-rows // height)


@given(layers(), PROCESSORS)
def test_every_read_once_longest_programs_first_and_parts_side_by_side(of_heads, processors):
    tokens, heads = of_heads
    reads = [*chain(*heads)]
    out, room = planned(reads, processors, len(heads), tokens)
    assert sorted(read[1] for read in out) == list(range(len(reads)))
    assert [read[3] for read in out] == [reads[read[1]][0] for read in out]
    lengths = [tiles_of(reads[read[1]][1], read[6]) if read[3] else 0 for read in out]
    assert lengths == sorted(lengths, reverse=True)
    end = 0
    for _, _, _, rows, _, _, parts, slot in out:
        assert 1 <= parts <= (MOST_PARTS if room else 1)
        assert slot == end or parts == 1
        end += parts * rows if parts > 1 else 0
    assert end <= room * TILE
    assert sum(tiles_of(read[3]) * read[6] for read in out if read[6] > 1) <= room


@given(layers(), PROCESSORS, st.sampled_from([16, 32, 64, 128, 256]))
def test_every_tile_of_every_part_has_a_program(of_heads, processors, height):
    """As kernels find it: programs count through the reads, and those of a read through its parts and tiles."""
    tokens, heads = of_heads
    out, room = planned([*chain(*heads)], processors, len(heads), tokens)
    done = [(i, *at) for i, read in enumerate(out) for at in product(range(read[6]), range(tiles_of(read[3], height)))]
    counts = [tiles_of(read[3], height) * read[6] for read in out]
    ends = np.cumsum(counts)
    there = programs(len(out), len(heads), tokens, height, room)
    found = []
    for program in range(there):
        read = int((ends <= program).sum())
        if read < len(out):
            tiles = tiles_of(out[read][3], height)
            number = program - (ends[read - 1] if read else 0)
            found.append((read, number // tiles, number % tiles))
    assert found == done


def as_before(tiles, work, processors):
    """The parts of a planner that cut only the long reads, and only if there were few programs."""
    goal = max(1.0, sum(t * w for t, w in zip(tiles, work, strict=True)) / (4 * processors))
    few = sum(tiles) < 4 * processors
    return tuple(min(max(int(w / goal), 1), 8) if few else 1 for w in work)


@given(layers(), st.sampled_from([1, 20, 132]))
def test_no_later_than_uncut_and_than_with_the_long_ones_cut(of_heads, processors):
    tokens, heads = of_heads
    reads = sorted(((w, tiles_of(r)) for r, w in chain(*heads) if r and w), reverse=True)
    work, tiles = tuple(w for w, _ in reads), tuple(t for _, t in reads)
    room = part_tiles(len(reads), len(heads), tokens, processors)
    parts = best_parts(tiles, work, processors, room) if room else (1,) * len(reads)
    time = predicted(tiles, work, parts, processors)
    assert time <= predicted(tiles, work, (1,) * len(reads), processors)
    if room:
        assert time <= predicted(tiles, work, as_before(tiles, work, processors), processors)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 60)), max_size=6),
    st.integers(1, 12),
)
def test_the_simulation_is_that_of_one_program_after_another(groups, processors):
    free = [0] * processors
    for length, count in groups:
        for _ in range(count):
            heapq.heapreplace(free, free[0] + length)
    assert makespan(groups, processors) == max(free)


def test_equal_reads_stay_neighbours():
    reads, keys = layer([(100, 7), (100, 9), (100, 7), (100, 9)])
    assert schedule(reads, keys)[0, :, 1].tolist() == [1, 3, 0, 2]


def test_the_last_reads_are_cut_where_the_last_wave_would_be_short():
    """444 tiles for 132 processors are 3.4 waves: whole they take four, and cut about as long as if nobody waited."""
    work, tiles = (32_760,) * 12, (37,) * 12
    parts = best_parts(tiles, work, 132, PARTS * 132)
    assert parts == (1,) * 10 + (5,) * 2
    assert predicted(tiles, work, (1,) * 12, 132) > 1.16 * predicted(tiles, work, parts, 132)
    assert predicted(tiles, work, parts, 132) < 1.03 * 12 * 37 * 32_760 / 132


def test_few_programs_are_cut_to_fill_the_device():
    (read,), _ = planned([(500, 5000)], 132, 1, 500)
    assert read[6] == MOST_PARTS


@pytest.mark.parametrize("heads", [12, 114, 115])
def test_where_tiles_are_enough_nothing_is_cut(heads):
    """By shape alone: 114 heads of 37 tiles are just below 32 programs for each of 132 processors."""
    out, room = planned([(4680, 32_760)] * heads, 132, heads, 4680)
    assert (room > 0) == (heads * 37 < ENOUGH * 132)
    assert room in (0, PARTS * 132)
    assert room or {read[6] for read in out} == {1}
