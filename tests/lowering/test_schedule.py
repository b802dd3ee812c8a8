"""The order and the cuts of a layer's work."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from headforce.kernels.reference import READ_FIELDS
from headforce.lowering.schedule import MOST_PARTS, cuts, schedule

sizes = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 40_000)), min_size=1, max_size=60)


def layer(sizes):
    reads = np.zeros((1, len(sizes), len(READ_FIELDS)), dtype=np.int32)
    reads[0, :, 1] = np.arange(len(sizes))
    reads[0, :, 3] = [rows for rows, _ in sizes]
    return reads, np.array([[keys for _, keys in sizes]], dtype=np.int64)


@given(sizes, st.sampled_from([0, 1, 20, 132]))
def test_longest_first_and_parts_that_fit_into_the_workspace(sizes, processors):
    reads, keys = layer(sizes)
    out = schedule(reads, keys, processors)[0].tolist()
    assert sorted(read[1] for read in out) == list(range(len(sizes)))  # every read once
    work = [sizes[read[1]][1] if sizes[read[1]][0] else 0 for read in out]
    assert work == sorted(work, reverse=True)
    end = 0
    for _, head, _, rows, _, _, parts, slot in out:
        assert rows == sizes[head][0]
        assert 1 <= parts <= (MOST_PARTS if processors else 1)
        assert slot == end or parts == 1
        end += parts * rows if parts > 1 else 0
    # As if all reads were of one head, and as if each were of its own.
    rows = [rows for rows, _ in sizes]
    for queries, tokens in ((1, sum(rows)), (sum(r > 0 for r in rows), min((r for r in rows if r), default=0))):
        most, room = cuts(queries, tokens, processors)
        assert all(read[6] <= most for read in out)
        assert end <= room


def test_equal_reads_stay_neighbours():
    reads, keys = layer([(100, 7), (100, 9), (100, 7), (100, 9)])
    assert schedule(reads, keys)[0, :, 1].tolist() == [1, 3, 0, 2]


def test_few_long_reads_are_cut_and_many_are_not():
    few = schedule(*layer([(4680, 32_760)] * 4 + [(4680, 9360)] * 8), 132)[0]
    assert set(few[:4, 6].tolist()) != {1}  # 444 tiles for 132 processors
    assert (few[:4, 6] >= few[4:, 6].max()).all()
    many = schedule(*layer([(4680, 32_760)] * 40), 132)[0]
    assert set(many[:, 6].tolist()) == {1}
