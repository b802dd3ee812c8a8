"""Sets of frames against Python's own sets."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce.policy import FrameSet

frames = st.sets(st.integers(0, 60))


@given(frames, frames)
def test_operations_are_those_of_sets(a, b):
    x, y = FrameSet.of(a), FrameSet.of(b)
    assert set(x | y) == a | b
    assert set(x & y) == a & b
    assert set(x - y) == a - b
    assert (x <= y) == (a <= b)
    assert (x == y) == (a == b)
    assert len(x) == len(a)
    assert bool(x) == bool(a)


@given(frames, st.integers(-3, 64))
def test_membership_order_and_ends(a, n):
    x = FrameSet.of(a)
    assert list(x) == sorted(a)
    assert (n in x) == (n in a)
    assert set(x.below(n)) == {f for f in a if f < n}
    assert list(x.newest(max(n, 0))) == sorted(a)[max(0, len(a) - max(n, 0)) :]


@given(frames)
def test_intervals_are_maximal_and_printing_names_every_frame(a):
    x = FrameSet.of(a)
    intervals = list(x.intervals())
    assert {f for start, stop in intervals for f in range(start, stop)} == a
    assert all(before[1] < after[0] for before, after in pairwise(intervals))
    assert _read(str(x)) == a


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([], "none"),
        ([4], "4"),
        ([0, 6, 12], "0, 6, 12"),
        ([0, 6, 12, 18], "0-18/6"),
        ([0, 6, 12, 18, 20], "0-18/6, 20"),
        ([1, 3, 5, 7, 10, 14, 18, 22], "1-7/2, 10-22/4"),
        ([0, 2, 3, 5, 7, 9, 11], "0, 2-3, 5-11/2"),
        ([0, 2, 4, 6, 7], "0, 2, 4, 6-7"),
        ([0, 1, 3, 4, 6, 7, 9, 10], "0-1, 3-4, 6-7, 9-10"),
    ],
)
def test_printed_form(frames, text):
    assert str(FrameSet.of(frames)) == text


def _read(text: str) -> set[int]:
    if text == "none":
        return set()
    named: set[int] = set()
    for part in text.split(", "):
        interval, _, step = part.partition("/")
        first, _, last = interval.partition("-")
        named |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return named


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 60))
def test_stride(phase, period, stop):
    assert set(FrameSet.stride(phase, period, stop)) == {f for f in range(stop) if f % period == phase % period}


@given(st.integers(-5, 40), st.integers(-5, 60))
def test_interval(start, stop):
    assert set(FrameSet.interval(start, stop)) == set(range(max(0, start), stop))


def test_a_huge_period_costs_nothing():
    # As a geometric series this would be a number of 10**12 bits.
    assert list(FrameSet.stride(3, 10**12, 100)) == [3]
