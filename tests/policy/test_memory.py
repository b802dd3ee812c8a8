"""Stores: what they are offered, what they hold, and that a record is all it takes to know."""

from itertools import pairwise

import pytest
from hypothesis import given

from headforce.errors import HeadforceError
from headforce.policy import Chunk, FrameSet, HeadMemory, Schedule, Write, oracle, parse_rule
from headforce.policy.memory import BUSIEST
from headforce.policy.ops.merge import Merge
from headforce.testing.strategies import decisions, novel_by, rules, schedules


def run(rule, schedule, decide=BUSIEST):
    """The memory after every commit: a list of (chunk that follows, stores)."""
    memory, before, states = HeadMemory(rule), None, []
    for chunk in schedule:
        if before is not None:
            memory.commit(before, chunk, decide)
            states.append((chunk, dict(memory.stores)))
        before = chunk
    return memory, states


def held(text, schedule, decide=BUSIEST):
    """What the stores hold at the end, printed."""
    memory, _ = run(parse_rule(text), Schedule.parse(schedule), decide)
    return {name: str(frames) for name, frames in memory.held.items()}


@given(rules(stores=True), schedules(chunks=16), decisions())
def test_the_oracle_rebuilds_every_state_from_the_record(rule, schedule, decide):
    memory, states = run(rule, schedule, decide)
    for chunk, stores in states:
        replayed = oracle.replay(rule, memory.record, chunk.start)
        assert replayed == {name: {f for unit in units for f in unit} for name, units in stores.items()}


@given(rules(stores=True), schedules(chunks=16), decisions())
def test_stores_keep_to_their_slots_and_their_source(rule, schedule, decide):
    memory, states = run(rule, schedule, decide)
    for term in [term for term in rule.stateful if not term.op.paged]:
        offered = _offered(rule, term, list(schedule), memory)
        for chunk, stores in states:
            units = stores[term.store]
            assert len(units) <= term.op.slots
            assert sum(len(unit) for unit in units) == len({f for unit in units for f in unit})
            writes = memory.record[term.store, chunk.start]
            assert {f for write in writes for f in write.unit} <= offered[chunk.start]
            if term.op.unit == "frame":
                assert all(len(write.unit) == 1 for write in writes)
            else:
                assert len(writes) <= 1


def _offered(rule, term, chunks, memory):
    """Frames committed -> what a store may be offered then, from the plain definitions."""
    feeder = next((other for other in rule.terms if other.store == term.op.feeds_from), None)
    offered = {}
    for before, after in pairwise(chunks):
        new = set(before.queries)
        if feeder is None:
            offered[after.start] = new
        elif feeder.op.stateful:
            writes = memory.record[feeder.store, after.start]
            offered[after.start] = {f for write in writes for f in write.replaced}
        else:
            offered[after.start] = (set(feeder.op.live(before)) | new) - set(feeder.op.live(after))
    return offered


@given(schedules(chunks=16))
def test_a_window_gives_up_every_frame_once(schedule):
    rule = parse_rule("window(4) | episodic(1000, source=evicted(window))")
    for chunk, stores in run(rule, schedule)[1]:
        assert [f for unit in stores["episodic"] for f in unit] == list(range(max(0, chunk.start - 4)))


@given(schedules(chunks=16))
def test_a_chain_of_stores_loses_nothing(schedule):
    rule = parse_rule("episodic(2) as a | episodic(3, source=evicted(a)) as b | episodic(1000, source=evicted(b)) as c")
    for chunk, stores in run(rule, schedule)[1]:
        assert sorted(f for units in stores.values() for unit in units for f in unit) == list(range(chunk.start))


def test_sources_and_units():
    assert held("episodic(3)", "3x4") == {"episodic": "6-8"}
    assert held("episodic(2, unit=chunk)", "3x4") == {"episodic": "3-8"}
    assert held("window(2) | episodic(3, source=evicted(window))", "3x4") == {"episodic": "4-6"}
    assert held("window(2) | episodic(9, unit=chunk, source=evicted(window))", "3x3") == {"episodic": "0-3"}
    assert held("sink(2) | episodic(3, source=evicted(sink))", "3x2") == {"episodic": "2"}
    assert held('stride(2, phase="query", last=1) as near | episodic(9, source=evicted(near))', "3x4") == {
        "episodic": "0-6"
    }


def test_what_is_not_novel_is_not_written():
    assert held("episodic(3)", "3x4", novel_by(lambda store, units, unit: (0 in unit, FrameSet()))) == {"episodic": "0"}


def test_the_least_novel_unit_is_replaced():
    def decide(store, units, unit):
        return True, units[-1] if units else FrameSet()

    assert held("episodic(3, evict=least_novel)", "3x4", novel_by(decide)) == {"episodic": "0-1, 8"}
    assert held("episodic(3)", "3x4", novel_by(decide)) == {"episodic": "6-8"}


def test_a_record_that_cannot_be():
    rule = parse_rule("episodic(1, evict=least_novel)")
    memory = HeadMemory(rule)
    with pytest.raises(HeadforceError, match="HF-DECISION"):
        memory.commit(Chunk(0, 0, 3), Chunk(1, 3, 3), novel_by(lambda store, units, unit: (True, FrameSet.of([77]))))
    op = rule.terms[0].op
    with pytest.raises(HeadforceError, match="HF-DECISION"):
        op.after((FrameSet.of([0]),), (Write(FrameSet.of([1])),))


def test_a_commit_without_a_record():
    rule = parse_rule("episodic(2)")
    assert oracle.replay(rule, {}, 0) == {"episodic": set()}
    with pytest.raises(HeadforceError, match="HF-DECISION"):
        oracle.replay(rule, {}, 3)
    with pytest.raises(HeadforceError, match="HF-DECISION"):
        oracle.read(rule, None, Chunk(1, 3, 3), 3)


def test_merged_blocks_keep_their_places_while_they_are_held():
    """A newer block takes the place of the one that it replaces, and nothing else is copied."""
    op = parse_rule("merge(2, last=3) | window(1)").terms[0].op
    before, after = ({part.frames: part.place for part in op.parts(FrameSet.interval(a, a + 6))} for a in (0, 2))
    assert sorted(before.values()) == sorted(after.values()) == [0, 1, 2]
    assert all(after[frames] == before[frames] for frames in before.keys() & after.keys())
    assert after[6, 7] == before[0, 1]
    gap = op.parts(FrameSet.interval(0, 2) | FrameSet.interval(6, 8))  # both want the same place
    assert [part.place for part in gap] == [0, 1]


def test_a_merged_block_stands_at_its_middle_and_mixes_cells():
    assert [part.at for part in Merge(4, last=2).parts(FrameSet.interval(4, 12))] == [5, 9]
    assert [part.at for part in Merge(3).parts(FrameSet.interval(3, 6))] == [4]
    op = Merge(2, height=2, width=3)
    (part,) = op.parts(FrameSet.interval(6, 8))
    cells = op.materialize_part(part, 4, 6)
    # Four rows of six tokens: 0 to 5, 6 to 11, ...
    tokens = [sorted({token for _, token in cell.weights}) for cell in cells]
    assert tokens == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
    assert [cell.token for cell in cells] == [0, 3, 12, 15]
    assert all({frame for frame, _ in cell.weights} == {6, 7} for cell in cells)
    assert all(set(cell.weights.values()) == {1 / 12} for cell in cells)


def test_going_back_leaves_the_blocks_in_front():
    held = FrameSet.interval(3, 9)
    assert [str(Merge(3, last=2).before(held, frame)) for frame in (9, 8, 6, 5, 3)] == [
        "3-8",
        "3-5",
        "3-5",
        "none",
        "none",
    ]


def test_how_often_a_unit_was_chosen_does_not_depend_on_when():
    """Counted from the record, whatever the order of its entries."""
    rule = parse_rule("select(1, segments=2, source=evicted(near), reuse=2) | window(2) as near")
    memory = HeadMemory(rule)
    memory.committed = 9
    chosen = {3: [4], 6: [5, 4], 9: [4, 7]}
    for when in (9, 3, 6):
        memory.record["select", when] = tuple(Write(FrameSet.of([unit])) for unit in chosen[when])
    memory.record["other", 9] = (Write(FrameSet.of([5])),)
    memory.record["select", 12] = (Write(FrameSet.of([5])),)  # not committed
    assert [str(memory._chosen("select", times)) for times in (1, 2, 3, 4)] == ["4-5, 7", "4", "4", "none"]
