"""Every registered operator: complete, documented, and its fast form equal to its plain one.

A new operator is tested here as soon as it is registered; what it lacks is reported by its name.
"""

import dataclasses
from pathlib import Path

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from headforce.policy import Chunk, FrameSet, Op, StoreOp, load_ops, parse_rule
from headforce.policy.op import arguments
from headforce.testing.strategies import ops, schedules

OPS = load_ops()
STATELESS = [name for name, kind in OPS.items() if not kind.stateful]
NATIVE = parse_rule("sink(2) | span(9)")
DOCS = Path(__file__).parents[2] / "docs" / "policy.md"

chunks = st.builds(Chunk, st.integers(0, 9), st.integers(0, 60), st.integers(1, 6))


def lacks(kind):
    """What an operator lacks of its protocol."""
    methods = ["bound", "settles", *(["units"] if kind.stateful else ["frames", "materialize"])]
    base = StoreOp if kind.stateful else Op
    return [name for name in methods if getattr(kind, name) in (getattr(base, name, None), getattr(Op, name, None))]


@pytest.mark.parametrize("name", OPS)
def test_operator_is_complete(name):
    kind = OPS[name]
    missing = [method for method in lacks(kind) if not (kind.stateful and method == "settles")]
    assert not missing, f"operator {name} lacks {', '.join(missing)}"
    own = kind.__doc__ or ""
    assert own, f"operator {name} lacks a docstring"
    assert not own.startswith(f"{kind.__name__}("), f"operator {name} lacks a docstring of its own"
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen, f"operator {name} is not a frozen dataclass"


def test_a_missing_part_is_reported_by_name():
    @dataclasses.dataclass(frozen=True)
    class Unfinished(Op):
        def frames(self, chunk, query):
            return FrameSet()

    assert lacks(Unfinished) == ["bound", "settles", "materialize"]


@pytest.mark.parametrize("name", OPS)
def test_operator_is_in_the_docs(name):
    title = f"### `{name}({', '.join(field.name for field in arguments(OPS[name]))})`"
    assert title in DOCS.read_text(encoding="utf-8"), f"docs/policy.md lacks the section {title}"


@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_text_round_trip(name, data):
    op = data.draw(ops(OPS[name]))
    feeder = f"window(1) as {op.feeds_from} | " if op.feeds_from else ""
    assert parse_rule(feeder + str(op)).terms[-1].op == op


@pytest.mark.parametrize("name", STATELESS)
@given(data=st.data(), chunk=chunks)
def test_frames_are_those_of_the_plain_definition(name, data, chunk):
    op = data.draw(ops(OPS[name], NATIVE))
    for query in chunk.queries:
        assert set(op.frames(chunk, query)) == op.materialize(chunk, query)
        assert op.frames(chunk, query) <= FrameSet.interval(0, chunk.start)
    if not op.by_query:
        assert len({op.frames(chunk, query) for query in chunk.queries}) == 1


@pytest.mark.parametrize("name", STATELESS)
@given(data=st.data(), schedule=schedules())
def test_live_frames_are_never_missed_and_within_the_bound(name, data, schedule):
    op = data.draw(ops(OPS[name], NATIVE))
    held = FrameSet()
    for chunk in schedule:
        live = op.live(chunk)
        assert live <= held
        assert all(op.frames(chunk, query) <= live for query in chunk.queries)
        assert len(live) <= op.bound(sympy.Integer(chunk.start), sympy.Integer(chunk.frames))
        held = live | FrameSet.of(chunk.queries)


@pytest.mark.parametrize("name", STATELESS)
@given(data=st.data(), frames=st.integers(1, 4))
def test_sets_settle_and_repeat(name, data, frames):
    op = data.draw(ops(OPS[name], NATIVE))
    if sympy.sympify(op.bound(sympy.oo, sympy.Integer(frames))).is_infinite:
        return
    period = op.repeats() * frames
    start = -(-op.settles() // frames) * frames
    for chunk in (Chunk(0, s, frames) for s in range(start, start + 2 * period, frames)):
        now, later = op.live(chunk), op.live(Chunk(0, chunk.start + period, frames))
        moved = FrameSet(now.bits << period)
        # native() is a union of both kinds of set, and settles as a rule does: in size.
        assert len(now) == len(later) if name == "native" else later in (now, moved)
