"""Schedules of chunks and their text."""

from itertools import pairwise

import pytest
from hypothesis import given

from headforce.errors import HeadforceError
from headforce.policy import Chunk, Schedule
from headforce.testing.strategies import schedules


@given(schedules())
def test_text_round_trip(schedule):
    assert Schedule.parse(str(schedule)) == schedule


@given(schedules())
def test_chunks_follow_each_other(schedule):
    chunks = list(schedule)
    assert [chunk.index for chunk in chunks] == list(range(len(schedule)))
    assert [f for chunk in chunks for f in chunk.queries] == list(range(schedule.frames))
    assert all(before.then(after.frames) == after for before, after in pairwise(chunks))


def test_equal_sizes_are_counted_and_single_ones_are_not():
    assert str(Schedule((1, 3, 3, 2))) == "1,3x2,2"


def test_parse():
    assert Schedule.parse("3x2").sizes == (3, 3)
    assert Schedule.parse(" 1, 3x2 ,2").sizes == (1, 3, 3, 2)
    assert list(Schedule.parse("1,3")) == [Chunk(0, 0, 1), Chunk(1, 1, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3x",
        "x3",
        "3x0",
        "3x0,2",
        "0",
        "0x4",
        "-3",
        "3,,2",
        "3.5",
        "3 4",
        "three",
        "2x3x4",
        "²",
        "1" * 5000,
        "3x999999999",
        "1x60000,2x60000",
    ],
)
def test_bad_text(text):
    with pytest.raises(HeadforceError, match="HF-SCHEDULE"):
        Schedule.parse(text)


@pytest.mark.parametrize("sizes", [(), (3, 0), (-1,), (True, 3), (2.0,)])
def test_bad_sizes(sizes):
    with pytest.raises(HeadforceError, match="HF-SCHEDULE"):
        Schedule(sizes)
