"""A stream under every sequence of events: what is held, what is read, and what is refused.

`Model` is written without the code it judges: a dictionary of what each frame holds, and the definition of the events.
"""

import copy
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headforce.errors import HeadforceError
from headforce.lowering.clock import Clock, Event
from headforce.lowering.state.episodic import _compared
from headforce.lowering.stream import Stream
from headforce.lowering.verify import check_plan
from headforce.policy import Chunk, Decide, FrameSet, Policy, Warmup, oracle, parse_rule
from headforce.testing.strategies import decide_by, novel_by, policies, rules

NATIVE = parse_rule("sink(1) | span(7)")
LAYERS, HEADS = 2, 2


def bound(rule, warmup=None, horizon=None):
    policy = Policy({"a": parse_rule(rule)}, default="a", warmup=warmup, horizon=horizon)
    return policy.bind(layers=1, heads=1, native=NATIVE)


def stream_of(rule, **kwargs):
    return Stream(bound(rule, **kwargs))


def refused(code, call, *args):
    with pytest.raises(HeadforceError) as caught:
        call(*args)
    assert caught.value.code == code


class Model:
    """What every frame holds, by the definition of the events. A pass is (start, stop); contents are numbers."""

    def __init__(self):
        self.history, self.running, self.writes = {}, None, 0

    def begin(self, start, frames):
        """False for a gap."""
        stop = start + frames
        if self.running != (start, stop):
            if start == 0:
                self.history = {}
            elif start > len(self.history):
                return False
            elif self.running[0] <= start < self.running[1]:
                gone = range(start, self.running[1])
                if any(frame not in range(start, stop) for frame in gone) or len(self.history) == self.running[1]:
                    gone = range(start, len(self.history))
                for frame in gone:
                    del self.history[frame]
            self.running = (start, stop)
        self.writes += 1
        # The order of keys is that of the frames: a rewrite changes a frame where it stands.
        self.history.update({frame: (self.writes, frame) for frame in range(start, stop)})
        return True


class World:
    """A stream, its model, and the contents of every page of every lane."""

    def __init__(self, policy, seed=0):
        self.policy, self.stream, self.model = policy, Stream(policy), Model()
        self.pages = [{} for _ in self.stream.lanes]
        self.decide = decide_by(seed)

    def decider(self, lane):
        """Decides at random; every unit has keys in pages of the pass before, or it could not be compared."""
        compared = set(_compared(self.stream, lane))

        def novel(store, held, unit):
            assert {frame for frames in (*held, unit) for frame in frames} <= compared <= set(lane.slots.slot)
            return self.decide.novel(store, held, unit)

        return Decide(novel, self.decide.choose)

    def state(self):
        stream = self.stream
        lanes = [(dict(lane.slots.slot), lane.slots.pages, copy.deepcopy(lane.memory)) for lane in stream.lanes]
        return stream._clock, stream.plan, stream.layout, lanes

    def begin(self, start, frames):
        """Runs a pass and checks everything; the event, or the code of the refusal."""
        before, model = self.state(), copy.deepcopy(self.model)
        known = self.model.begin(start, frames)
        code, event = None, None
        try:
            event = self.stream.begin(start, frames, self.decider)
        except HeadforceError as error:
            code = error.code
        assert (code == "HF-CLOCK") == (not known)
        if code is not None:
            assert self.state() == before
            clock = self.stream._clock
            if clock.chunk and clock.chunk.stop <= clock.history == start:
                assert code != "HF-FORGOTTEN", "a stream can always go on where its history ends"
            self.model = model
            return code
        self.check(event, before)
        return event

    def check(self, event, before):
        stream, chunk = self.stream, self.stream.chunk
        check_plan(stream)
        assert len(self.model.history) == stream._clock.end
        old = before[-1]
        # Where a warm-up is over and regions shrink, pools move their pages as the stream says.
        relaid, stream.relaid = stream.relaid, {}
        for index, moves in relaid.items():
            contents = self.pages[index]
            self.pages[index] = {to: contents[page] for page, to in moves if page in contents}
        for index, lane in enumerate(stream.lanes):
            slot = lane.slots.slot
            assert len(set(slot.values())) == len(slot)
            assert all(0 <= page < lane.slots.pages for page in slot.values())
            assert (lane.slots.pages < old[index][1]) == (index in relaid)
            written = FrameSet.of(chunk.queries)
            for frame in written:
                self.pages[index][slot[frame]] = self.model.history[frame]
            if event is not Event.RESET:
                self.check_held(lane, FrameSet.of(old[index][0]), written)
        for layer, head in [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]:
            self.check_reads(layer, head)

    def check_held(self, lane, before, written):
        chunk, history = self.stream.chunk, self.stream.history
        live = lane.rule.live(chunk, lane.held)
        if history > chunk.stop or (lane.memory and history > chunk.start):
            held = lane.memory.at(history).held if lane.memory else {}
            live |= lane.rule.live(Chunk(len(self.stream._clock.starts), history, 1), held)
        if history == chunk.start:
            assert live <= before or before.below(chunk.start) == before & live
        assert lane.slots.held == live & before | written

    def check_reads(self, layer, head):
        """What a head finds in its pages is what the newest write of each frame left."""
        stream, chunk = self.stream, self.stream.chunk
        index = stream.lane_of[layer, 0, head]
        lane = stream.lanes[index]
        rule = self.policy.rules[layer][head]
        warmup = Warmup(rule.warmup_chunks, rule.warmup) if rule.warmup else None
        record = lane.memory.record if lane.memory else None
        readings = {query: reading for reading in stream.plan.of(layer, head).readings for query in reading.queries}
        for query in chunk.queries:
            wanted = oracle.read(rule.rule, warmup, chunk, query, record)
            found = {
                int(frame): self.pages[index][lane.slots.slot[int(frame)]] for frame in readings[query].frames[:, 0]
            }
            assert found == {frame: self.model.history[frame] for frame in wanted}


FORWARD = ("whole", "whole", "repeat", "part")
BACK = (*FORWARD, "rewrite", "rewrite", "rewrite", "end", "anywhere")
ANY = (*BACK, "reset", "forget")


@st.composite
def event_lists(draw):
    """(what, frames, where): a stretch forward, so that something can be forgotten, then anything."""
    size, kinds = draw(st.integers(1, 4)), draw(st.sampled_from([FORWARD, BACK, BACK, ANY]))
    sizes = st.just(size) | st.integers(1, 5)
    begin = [("whole", size, 0)] * draw(st.integers(0, 6))
    one = st.tuples(st.sampled_from(kinds), sizes, st.integers(0, 59))
    return begin + draw(st.lists(one, min_size=4, max_size=12))


def play(world, events):
    """Runs events, of which only the clock knows what they amount to."""
    world.begin(0, events[0][1])
    for what, frames, where in events:
        chunk, end = world.stream.chunk, world.stream._clock.end
        if what == "forget":
            world.stream.reset()
            world.model = Model()
            assert not any(lane.slots.held or lane.held for lane in world.stream.lanes)
        elif what == "repeat" and chunk is not None:
            assert world.begin(chunk.start, chunk.frames) is Event.REPEAT
        else:
            now = chunk or Chunk(0, 0, 1)
            start = {
                "whole": now.stop,
                "part": now.start + where % now.frames,
                "rewrite": max(1, now.start - where % (now.start + 1)),
                "anywhere": where % (end + 2),
                "end": end,
            }.get(what, 0)
            world.begin(start, frames)


@pytest.mark.slow
@settings(max_examples=60)
@given(policies(LAYERS, HEADS, horizon=60), event_lists())
def test_every_frame_read_is_the_newest_write_of_that_frame(policy, events):
    play(World(policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE)), events)


@pytest.mark.slow
@settings(max_examples=60)
@given(policies(LAYERS, HEADS, horizon=60, stores=True), event_lists(), st.integers(0, 99))
def test_stores_replay_through_rewrites_and_parts_of_passes(policy, events, seed):
    play(World(policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE), seed), events)


@settings(max_examples=60)
@given(rules(native=NATIVE), st.none() | st.builds(Warmup, st.integers(1, 3), rules(native=NATIVE)), st.integers(1, 5))
def test_a_steady_rhythm_fills_its_regions_and_never_needs_more(rule, warmup, frames):
    policy = Policy({"a": rule}, default="a", warmup=warmup, horizon=60).bind(layers=1, heads=1, native=NATIVE)
    stream, head = Stream(policy), policy.rules[0][0]
    used, need, layouts = 0, 0, set()
    for start in range(0, 60 - frames + 1, frames):
        stream.begin(start, frames)
        lane = stream.lanes[0]
        assert lane.slots.held == head.live(stream.chunk) | FrameSet.of(stream.chunk.queries)
        if warmup and stream.chunk.index == warmup.chunks:
            used, need = 0, 0  # from here on only what the rule needs is there
        used = max(used, len(lane.slots.slot))
        need = max(need, policy.need(head, stream.chunk) + frames)
        layouts.add((bool(warmup) and stream.chunk.index >= warmup.chunks, stream.layout))
    assert len(layouts) <= 1 + bool(warmup)
    assert lane.slots.pages == used == need


@settings(max_examples=40)
@given(rules(stores=True, native=NATIVE), st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(0, 99))
def test_any_chunk_sizes_fit_without_a_rewrite(rule, sizes, seed):
    world = World(Policy({"a": rule}, default="a", horizon=80).bind(layers=LAYERS, heads=HEADS, native=NATIVE), seed)
    start = 0
    for frames in sizes:
        assert world.begin(start, frames) in (Event.RESET, Event.ADVANCE)
        start += frames


@pytest.mark.slow
@settings(max_examples=30)
@given(policies(LAYERS, HEADS, horizon=60, stores=True), st.integers(1, 4), st.integers(0, 5))
def test_four_repeats_are_as_good_as_one(policy, frames, chunks):
    policy = policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE)
    once, often = World(policy), World(policy)
    for i in range(chunks + 1):
        once.begin(i * frames, frames)
        for repeat in range(5):
            event = often.begin(i * frames, frames)
            assert (event is Event.REPEAT) == (repeat > 0)
        assert often.state()[0] == once.state()[0]
        assert often.state()[2:] == once.state()[2:]
    assert often.stream.events[Event.REPEAT] == 4 * (chunks + 1)


# --- the clock, case by case ------------------------------------------------------------------------------------


def steps(*passes):
    clock, events = Clock(), []
    for start, frames in passes:
        event, clock = clock.step(start, frames)
        events.append(event)
    return events, clock


def test_part_of_a_pass_becomes_history_and_the_rest_is_discarded():
    events, clock = steps((0, 15), (3, 15), (6, 15))
    assert events == [Event.RESET, Event.ADVANCE, Event.ADVANCE]
    assert (clock.chunk, clock.history, clock.end) == (Chunk(2, 6, 15), 6, 21)


def test_a_rewrite_keeps_what_lies_behind():
    events, clock = steps((0, 3), (3, 3), (6, 3), (3, 3), (9, 3))
    assert events[3:] == [Event.REWRITE, Event.ADVANCE]
    assert (clock.chunk, clock.history) == (Chunk(3, 9, 3), 9)


def test_a_rewrite_can_step_through_what_lies_behind():
    events, clock = steps((0, 3), (3, 3), (6, 3), (9, 3), (3, 3), (6, 3), (9, 3), (12, 3))
    assert events[4:] == [Event.REWRITE] * 3 + [Event.ADVANCE]
    assert clock.chunk == Chunk(4, 12, 3)


def test_a_rewrite_of_many_chunks_at_once_adds_no_chunk():
    _, clock = steps(*((3 * i, 3) for i in range(5)), (3, 12), (15, 3))
    assert clock.chunk == Chunk(5, 15, 3)


def test_a_longer_rewrite_of_the_same_frames_keeps_what_lies_behind():
    events, clock = steps((0, 3), (3, 3), (6, 3), (9, 3), (3, 3), (3, 6))
    assert (events[-1], clock.history) == (Event.REWRITE, 12)


def test_a_rewrite_that_begins_again_inside_itself_keeps_what_lies_behind():
    events, clock = steps((0, 3), (3, 3), (6, 3), (3, 3), (4, 2), (9, 3))
    assert events[3:] == [Event.REWRITE, Event.REWRITE, Event.ADVANCE]
    assert clock.history == 9


def test_a_rewrite_has_the_index_of_the_chunk_in_which_it_begins():
    passes = [(3 * i, 3) for i in range(5)]
    assert steps(*passes, (3, 3))[1].chunk.index == 1
    assert steps(*passes, (5, 3))[1].chunk.index == 1
    assert steps(*passes, (5, 3), (8, 3))[1].chunk.index == 2


def test_going_on_inside_a_rewritten_chunk_gives_up_what_lies_behind():
    _, clock = steps((0, 3), (3, 3), (6, 3), (3, 3), (4, 1))
    assert (clock.history, clock.end) == (4, 5)
    refused("HF-CLOCK", clock.step, 9, 3)


def test_the_same_start_with_another_length_commits_nothing():
    events, clock = steps((0, 3), (3, 3), (3, 1))
    assert (events[-1], clock.history, clock.chunk) == (Event.ADVANCE, 3, Chunk(1, 3, 1))


@pytest.mark.parametrize("passes", [[(1, 3)], [(0, 3), (4, 3)], [(0, 3), (3, 3), (3, 1), (5, 1)], [(0, 0)], [(-1, 2)]])
def test_a_gap_is_refused(passes):
    refused("HF-CLOCK", steps, *passes)


def test_a_reset_starts_anew():
    stream = stream_of("sink(1) | window(2)", warmup=Warmup(1, parse_rule("drop()")))
    for start in (0, 3, 6, 0):
        stream.begin(start, 3)
    assert stream.events[Event.RESET] == 2
    assert stream.chunk == Chunk(0, 0, 3)
    assert stream.lanes[0].slots.held == FrameSet.interval(0, 3)
    stream.reset()
    refused("HF-CLOCK", stream.begin, 3, 3)


# --- refusals, which change nothing -------------------------------------------------------------------------------


def test_a_rewrite_whose_past_is_gone_is_refused():
    world = World(bound_everywhere("window(3)"))
    for start in (0, 3, 6, 9):
        world.begin(start, 3)
    assert world.begin(3, 3) == "HF-FORGOTTEN"
    assert world.begin(12, 3) is Event.ADVANCE


def test_going_on_behind_a_rewrite_where_frames_are_gone_is_refused():
    # The rewrite of frame 2 reads nothing, but a pass at frame 12 reads frame 9, which nothing has held since.
    world = World(bound_everywhere("stride(6, phase=3, last=1)"))
    for start in range(0, 21, 3):
        world.begin(start, 3)
    assert world.begin(2, 1) is Event.REWRITE
    assert world.begin(12, 3) == "HF-FORGOTTEN"
    assert world.begin(21, 3) is Event.ADVANCE


def test_a_store_that_gave_up_a_unit_cannot_go_back_behind_it():
    world = World(bound_everywhere("episodic(2, write=novel(1))"))
    world.decide = novel_by(lambda store, held, unit: (True, FrameSet()))
    for start in (0, 1, 2, 3, 4):
        world.begin(start, 1)
    assert world.begin(2, 1) == "HF-FORGOTTEN"
    assert world.begin(5, 1) is Event.ADVANCE


def test_a_rewrite_reads_the_store_as_it_was_and_leaves_it_as_it_is():
    world = World(bound_everywhere("episodic(4, write=novel(1))"))
    world.decide = novel_by(lambda store, held, unit: (True, FrameSet()))
    for start in (0, 1, 2, 3):
        world.begin(start, 1)
    assert world.begin(2, 1) is Event.REWRITE
    assert str(world.stream.lanes[0].held["episodic"]) == "0-1"
    assert world.begin(4, 1) is Event.ADVANCE
    assert str(world.stream.lanes[0].held["episodic"]) == "0-3"


@pytest.mark.parametrize("rule", ["drop()", "sink(3)", "sink(1) | window(2)"])
def test_a_rewrite_has_room_even_if_nothing_of_it_is_kept(rule):
    world = World(bound_everywhere(rule))
    for start in range(0, 15, 3):
        world.begin(start, 3)
    assert world.begin(3, 3) in (Event.REWRITE, "HF-FORGOTTEN")
    assert world.begin(1, 2) is Event.REWRITE
    assert world.begin(15, 3) is Event.ADVANCE


def test_a_rewrite_that_needs_more_room_than_any_chunk_gets_it():
    world = World(bound_everywhere("sink(1) | window(9)", horizon=40))
    for start in range(35):
        world.begin(start, 1)
    assert world.begin(1, 30) is Event.REWRITE
    assert world.begin(35, 1) is Event.ADVANCE


def test_a_stream_that_begins_anew_has_room_for_its_warmup():
    world = World(bound_everywhere("drop()", warmup=Warmup(6, parse_rule("window(9)"))))
    for start in range(6):
        world.begin(start, 1)
    world.begin(6, 3)
    for start in range(0, 21, 3):
        assert world.begin(start, 3) in (Event.RESET, Event.ADVANCE)


def test_a_store_may_still_hold_a_chunk_longer_than_those_of_now():
    world = World(bound_everywhere("window(3) | episodic(4, unit=chunk)", horizon=12))
    world.decide = novel_by(lambda store, held, unit: (len(held) < 4, FrameSet()))
    world.begin(0, 5)
    for start in range(5, 12):
        assert world.begin(start, 1) is Event.ADVANCE
    assert len(world.stream.lanes[0].slots.slot) == 12


def test_a_rewrite_is_refused_if_frames_that_a_store_may_be_offered_are_gone():
    world = World(bound_everywhere("window(4) as recent & sink(1) | episodic(2, source=evicted(recent))"))
    world.decide = novel_by(lambda store, held, unit: (False, FrameSet()))
    for start in range(9):
        world.begin(start, 1)
    assert world.begin(5, 3) == "HF-FORGOTTEN"


def test_a_warmup_does_not_come_back_with_a_rewrite():
    stream = stream_of("sink(6)", warmup=Warmup(3, parse_rule("drop()")))
    for start in (0, 3, 6, 9, 12, 3, 15):
        stream.begin(start, 3)
    assert stream.chunk == Chunk(5, 15, 3)
    check_plan(stream)
    assert stream.plan.of(0, 0).kept == 6


def test_past_the_horizon_is_refused():
    world = World(bound_everywhere("everything()", horizon=7))
    assert [world.begin(s, 3) for s in (0, 3)] == [Event.RESET, Event.ADVANCE]
    assert world.begin(6, 3) == "HF-HORIZON"
    assert world.begin(6, 1) is Event.ADVANCE


def test_a_distance_out_of_range_is_refused():
    policy = Policy({"a": parse_rule("sink(1)")}, default="a", position_range=5)
    world = World(policy.bind(layers=LAYERS, heads=HEADS))
    assert [world.begin(s, 3) for s in (0, 3, 6)] == [Event.RESET, Event.ADVANCE, "HF-POSITION"]
    assert world.begin(3, 3) is Event.REPEAT


def test_a_rule_with_state_needs_a_decider():
    stream = stream_of("episodic(2)")
    stream.begin(0, 3)
    refused("HF-DECISION", stream.begin, 3, 3)
    assert stream.chunk == Chunk(0, 0, 3)


def test_the_last_chunk_before_a_rewrite_is_offered_to_the_stores():
    asked = []

    def decider(lane):
        return novel_by(lambda store, held, unit: (asked.append(str(unit)) or True, FrameSet()))

    stream = stream_of("episodic(9, write=novel(1))")
    for start in (0, 3, 0 + 1, 6):
        stream.begin(start, 3 if start != 1 else 2, decider)
        check_plan(stream)
    assert asked == ["0", "1", "2", "3", "4", "5"]


def test_frames_of_a_discarded_rewrite_are_offered_again():
    asked = []

    def decider(lane):
        return novel_by(lambda store, held, unit: (asked.append(str(unit)) or False, FrameSet()))

    stream = stream_of("episodic(9)")
    for start, frames in ((0, 3), (3, 3), (6, 3), (3, 3), (4, 1), (5, 1)):
        stream.begin(start, frames, decider)
        check_plan(stream)
    assert asked == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "3", "4"]


# --- the checker is checked ---------------------------------------------------------------------------------------


def running_stream():
    policy = Policy(
        {"a": parse_rule('sink(1)@collapse(4) | stride(3, phase="query", last=2)'), "b": parse_rule("window(4)")},
        heads={0: {"a": (0,), "b": (1,)}, 1: {"a": (1,), "b": (0,)}},
    ).bind(layers=2, heads=2)
    stream = Stream(policy)
    for start in range(0, 15, 3):
        stream.begin(start, 3)
    check_plan(stream)
    return stream


def fault(name):
    stream = running_stream()
    head, lane = stream.plan.of(0, 0), stream.lanes[0]
    reading = head.readings[0]
    if name == "drops a sink":
        reading.__dict__["frames"] = reading.frames[1:]
    elif name == "moves a frame":
        reading.frames[0, 1] += 1
    elif name == "forgets a query":
        object.__setattr__(head, "readings", head.readings[1:])
    elif name == "swaps heads of one layer":
        stream.plan.which[1] = stream.plan.which[1][:, ::-1]
    elif name == "swaps layers":
        stream.plan.which[:] = stream.plan.which[::-1]
    elif name == "gives up a page":
        lane.slots.slot.pop(0)
    elif name == "shares a page":
        lane.slots.slot[13] = lane.slots.slot[12]
    elif name == "leaves the region":
        lane.slots.slot[14] = lane.slots.pages
    elif name == "gives no page to the chunk":
        lane.slots.slot.pop(14)
    elif name == "gives a head another lane":
        stream.lane_of[1] = stream.lane_of[1][:, ::-1]
    return stream


FAULTS = (
    "drops a sink",
    "moves a frame",
    "forgets a query",
    "swaps heads of one layer",
    "swaps layers",
    "gives up a page",
    "shares a page",
    "leaves the region",
    "gives no page to the chunk",
    "gives a head another lane",
)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_plan_is_caught(name):
    refused("HF-VERIFY-PLAN", check_plan, fault(name))


def bound_everywhere(rule, **kwargs):
    one = SimpleNamespace(policy=Policy({"a": parse_rule(rule)}, default="a", **kwargs))
    return one.policy.bind(layers=LAYERS, heads=HEADS, native=NATIVE)
