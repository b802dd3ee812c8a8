"""Position maps: the index at which a query sees a frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headforce.errors import HeadforceError
from headforce.policy import Clamp, Collapse, Keep
from headforce.policy.ops.sink import Sink

pairs = st.tuples(st.integers(0, 200), st.integers(0, 200)).map(sorted)
distances = st.integers(1, 60)


@given(pairs)
def test_keep(pair):
    frame, query = pair
    assert Keep().position(frame, query) == frame


@given(pairs, distances)
def test_collapse_puts_every_frame_at_one_distance(pair, d):
    frame, query = pair
    assert query - Collapse(d).position(frame, query) == min(query, d)


@given(pairs, distances)
def test_clamp_bounds_the_distance_and_leaves_nearer_frames_alone(pair, d):
    frame, query = pair
    assert query - Clamp(d).position(frame, query) == min(query - frame, d)


@given(pairs, distances)
def test_no_position_is_before_the_stream_or_behind_the_query(pair, d):
    frame, query = pair
    for position_map in (Keep(), Collapse(d), Clamp(d)):
        assert 0 <= position_map.position(frame, query) <= query


def test_printed_form():
    assert [str(m) for m in (Keep(), Collapse(21), Clamp(3))] == ["keep", "collapse(21)", "clamp(3)"]


def test_a_map_that_does_not_exist():
    with pytest.raises(HeadforceError, match="HF-RULE-FORM"):
        Sink(1) @ "keep"
