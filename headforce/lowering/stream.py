"""The state of a stream: what every head holds while a pass runs. Pure integers.

Every pass names the frames it writes; `clock` says what that makes of the passes before. Here the stores take their
decisions, the chunk is planned, and every frame that some head may still read keeps its page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, Decide, FrameSet, HeadMemory
from ..policy.memory import Commit
from ..policy.node import FORGOTTEN
from ..policy.switch import Amended, Answer
from .clock import Clock, Event
from .lane import EMPTY, Lane, Making, check_makeable, makings, units_of
from .plan import Cell, ChunkPlan, Planner

__all__ = ["Decider", "Event", "Stream"]


Decider = Callable[[Lane], Decide]
"""The function that decides what the stores of a lane with state write at a commit. It is asked for while the stream
still is as it was during the last pass, whose keys are therefore still in their pages."""


@dataclass(frozen=True)
class _Next:
    """A lane in the pass that begins: what its stores hold, and the frames that keep their pages."""

    memory: HeadMemory | None
    live: FrameSet
    behind: FrameSet
    kept: dict[str, FrameSet] = field(default_factory=dict)
    """By store with pages of its own: the units whose parts are to be in them."""
    offered: FrameSet = EMPTY
    """Frames that stores need to have held from here on, read or not."""


class Stream:
    """A batch of videos being generated in step under one policy.

    After `begin`, `chunk` and `plan` are those of the running pass, and `lanes[lane_of[layer, row, head]]` says which
    page of a head's region holds which frame. `layout` counts how often regions changed: page pools follow it, and
    `relaid` has (old page, new page) of all that is to be kept where the regions of a lane shrink.
    `making` are the parts that are to be made, in this order, before that pass writes anything. `amended` is what
    prompt switches did to the history of each rule, by its text. `committing` is how many frames are history once the
    commit is done that a decider is asked about.
    """

    def __init__(self, policy: BoundPolicy, batch: int = 1) -> None:
        self.policy = policy
        self.batch = batch
        self.planner = Planner(policy, batch)
        self.plan: ChunkPlan | None = None
        self.layout = 0
        self.making: list[Making] = []
        self.relaid: dict[int, list[tuple[int, int]]] = {}
        self.events = dict.fromkeys(Event, 0)
        self.lanes: list[Lane] = []
        self.lane_of: npt.NDArray[np.int32] = np.empty((policy.layers, batch, policy.heads), dtype=np.int32)
        self._make_lanes()
        self.amended: dict[str, Amended] = {}
        self._clock = Clock()
        self._onward: Chunk | None = None
        self._rhythms: set[tuple[int, int]] = set()
        self._longest = 0
        self.committing = 0

    def _make_lanes(self) -> None:
        shared: dict[tuple[object, ...], int] = {}
        for layer, row, head in np.ndindex(self.lane_of.shape):
            rule = self.policy.rules[layer][head]
            where = {"head": (row, layer, head), "layer": (row, layer), "model": (row,), "every": ()}[rule.rule.scope]
            key = (rule.text, *where)
            if key not in shared:
                shared[key] = len(self.lanes)
                self.lanes.append(Lane.of(rule, (layer, row, head)))
            self.lane_of[layer, row, head] = shared[key]

    def cells(self, lane: Lane) -> list[Cell]:
        """The heads of a lane, layer by layer."""
        return [(int(c[0]), int(c[1]), int(c[2])) for c in np.argwhere(self.lane_of == self.lane_of[lane.first])]

    def lane(self, layer: int, head: int, row: int = 0) -> Lane:
        """The lane of one head of one row of the batch."""
        return self.lanes[self.lane_of[layer, row, head]]

    @property
    def chunk(self) -> Chunk | None:
        """The running pass; None before the first one and after `reset`."""
        return self._clock.chunk

    @property
    def closed(self) -> bool:
        """Whether the running chunk is history already: the prompt has switched behind it."""
        return self._clock.closed

    @property
    def history(self) -> int:
        """Frames 0..history-1 are history; those that `chunk` covers are being rewritten."""
        return self._clock.history

    # --- passes -------------------------------------------------------------------------------------------------

    def begin(
        self, start: int, frames: int, decide: Decider | None = None, *, lead: int = 0, again: bool = False
    ) -> Event:
        """A pass over frames start..start+frames-1 begins.

        `lead`: frames that it sends in front of them, see `Chunk`. `again`: whether it runs frames again that were made
        chunk by chunk, so that the stream does not go on in chunks of this size.

        Raises HF-CLOCK for a gap, HF-FORGOTTEN if its rules read frames that are no longer held, HF-HORIZON past the
        policy's horizon, HF-POSITION for a distance out of range, HF-DECISION if a rule has state and nothing decides.
        All of these leave the stream as it was.
        """
        event, clock = self._clock.step(start, frames, lead)
        if event is not Event.REPEAT:
            self._enter(event, clock, decide, again or event is Event.REWRITE)
        self.events[event] += 1
        return event

    def check_pass(self, start: int, frames: int, lead: int = 0) -> Event:
        """What a pass would be; HF-CLOCK or HF-HORIZON if it is none, whatever is held. Changes nothing."""
        event, clock = self._clock.step(start, frames, lead)
        assert clock.chunk is not None
        self.policy.check_horizon(clock.chunk)
        return event

    @property
    def end(self) -> int:
        """Frames of the stream, those of the running pass included."""
        return self._clock.end

    def switch(self, decide: Decider | None = None, answer: Answer | None = None, again: int | None = None) -> int:
        """The prompt switches: what was run becomes history, and every rule does with it what it says.

        `answer` goes before what the rules themselves say, and `again` before how many of the newest frames they want
        to be run again. Returns how many have to be before the stream goes on. Raises HF-CLOCK before the first pass,
        and what `begin` raises, HF-POSITION for a cut that goes beyond the policy's `position_range` among it; the
        stream is then as it was.
        """
        if self.chunk is None:
            raise HeadforceError("HF-CLOCK", found="a prompt switch before the first pass", needed="one between chunks")
        if again is None:
            again = max((min((answer or r.on_switch).again, self._clock.end) for r in self.policy.distinct), default=0)
        clock = self._clock.close(again)
        memories = [self._committed(lane, clock, decide) if lane.memory else None for lane in self.lanes]
        for lane, memory in zip(self.lanes, memories, strict=True):
            if memory is not None and (answer or lane.rule.on_switch).empties_stores:
                memory.empty()
        coming = [_Next(m, EMPTY, EMPTY, units_of(lane, m)) for lane, m in zip(self.lanes, memories, strict=True)]
        for lane, next_ in zip(self.lanes, coming, strict=True):
            check_makeable(lane, next_.kept, f"a prompt switch at frame {clock.history}")
        amended = {}
        for rule in self.policy.distinct:
            before = self.amended.get(rule.text, Amended())
            held = self._held_by(rule.text) if again else None
            amended[rule.text] = before.after(answer or rule.on_switch, rule.rule, clock.history, held)
        # A stream that could not go on would be refused at every pass from here on.
        self.planner.plan(Chunk(len(clock.starts), clock.history, 1), self._memories(memories), amended)
        for i, (lane, next_) in enumerate(zip(self.lanes, coming, strict=True)):
            self._commit(i, lane, next_)
        self.amended = amended
        self._onward = self._next_onward(clock)
        self._clock = clock
        return clock.history - clock.owed if clock.owed is not None else 0

    def saved(self) -> Callable[[], None]:
        """A function that takes back the switches from here to its call, if no pass has begun since."""
        kept = {"amended": self.amended, "_onward": self._onward, "_clock": self._clock, "making": list(self.making)}
        lanes = [(lane, lane.present, lane.memory) for lane in self.lanes]

        def take_back() -> None:
            vars(self).update(kept)
            for lane, present, memory in lanes:
                lane.present, lane.memory = present, memory

        return take_back

    def _held_by(self, rule: str) -> FrameSet:
        """The frames that some head with this rule holds a page of."""
        return reduce(or_, (lane.slots.held for lane in self.lanes if lane.rule.text == rule), EMPTY)

    def _memories(self, of_lanes: Sequence[HeadMemory | None]) -> dict[Cell, HeadMemory]:
        """The memory of every head that has one."""
        return {
            (int(layer), int(row), int(head)): memory
            for (layer, row, head), lane in np.ndenumerate(self.lane_of)
            if (memory := of_lanes[lane]) is not None
        }

    def reset(self) -> None:
        """Forgets everything; the next pass starts at frame 0."""
        for lane in self.lanes:
            lane.slots.keep(EMPTY)
            lane.present = {}
            if lane.memory is not None:
                lane.memory = HeadMemory(lane.rule.rule)
        self.making = []
        self.relaid = {}
        self.amended = {}
        self.plan = None
        self._clock = Clock()
        self._onward = None
        self._rhythms = set()
        self._longest = 0

    def _enter(self, event: Event, clock: Clock, decide: Decider | None, again: bool) -> None:
        chunk = clock.chunk
        assert chunk is not None
        self.policy.check_horizon(chunk)
        # Everything that may be refused is worked out before anything changes.
        coming = [self._next(lane, event, clock, decide) for lane in self.lanes]
        memories = self._memories([next_.memory for next_ in coming])
        written = FrameSet.interval(chunk.start, chunk.stop)
        amended = {text: its.rewritten(written) for text, its in self.amended.items()}
        plan = self.planner.plan(chunk, memories, {} if event is Event.RESET else amended)
        if event is Event.RESET:
            self.reset()
        for lane, next_ in zip(self.lanes, coming, strict=True):
            _check_held(lane, next_, plan)
        settled = event is Event.ADVANCE and any(lane.rule.warmup_chunks == chunk.index > 0 for lane in self.lanes)
        if not settled:
            self._make_room(chunk, coming, again)
        for i, (lane, next_) in enumerate(zip(self.lanes, coming, strict=True)):
            self._commit(i, lane, next_)
            lane.slots.keep(next_.live | next_.behind | written)
        if settled:
            self._settle(chunk)
            self._make_room(chunk, coming, again)
        for lane in self.lanes:
            lane.slots.take(chunk.queries)
        if event is not Event.RESET:
            self.amended = amended
        self._onward = self._next_onward(clock)
        self._clock, self.plan = clock, plan

    def _commit(self, number: int, lane: Lane, coming: _Next) -> None:
        """Takes over what a lane holds from here on, and what has to be made of it."""
        self.making += makings(number, lane, coming.kept)
        lane.present = {**lane.present, **coming.kept}
        lane.memory = coming.memory

    def _held(self, lane: Lane, memory: HeadMemory | None) -> dict[str, FrameSet]:
        """What stores hold and what is forgotten, for the rule of a lane to be asked."""
        amended = self.amended.get(lane.rule.text)
        lost = {FORGOTTEN: amended.forgotten} if amended and amended.forgotten else {}
        return {**(memory.held if memory else {}), **lost}

    def _next(self, lane: Lane, event: Event, clock: Clock, decide: Decider | None) -> _Next:
        chunk = clock.chunk
        assert chunk is not None
        if event is Event.RESET:
            return _Next(HeadMemory(lane.rule.rule) if lane.memory else None, EMPTY, EMPTY, units_of(lane, None))
        memory = at_end = self._committed(lane, clock, decide) if lane.memory else None
        rewrite = chunk.start < clock.history
        if at_end is not None and rewrite:
            memory = at_end.rewriting(chunk.start)
        live = lane.rule.live(chunk, self._held(lane, memory))
        behind = EMPTY
        if chunk.stop < clock.history or (rewrite and at_end):
            # The stream may step through the frames behind a rewrite, or go on where its history ends; stores always
            # go on from what they held there.
            resumed = Chunk(len(clock.starts), clock.history, 1)
            behind = lane.rule.live(resumed, self._held(lane, at_end)) & lane.slots.held
        kept = units_of(lane, at_end)
        # Stores that keep parts need no frame from before the end of the history, from where they go on.
        return _Next(memory, live, behind, kept, EMPTY if rewrite and kept else live)

    def _committed(self, lane: Lane, clock: Clock, decide: Decider | None) -> HeadMemory:
        """The memory of a lane once all history of `clock` is committed to it."""
        memory, before, after = lane.memory, self._onward, self._next_onward(clock)
        assert memory is not None
        cut = clock.history < self.history
        if cut:
            before = self.chunk
        assert before is not None
        memory = memory.at(before.start)
        if cut:
            memory.forget_after(before.start)
        if clock.history > before.start:
            if decide is None:
                raise HeadforceError(
                    "HF-DECISION", found=f"no decision for {memory.rule}", needed="a decider for rules with state"
                )
            self.committing = clock.history
            lost = self._held(lane, None).get(FORGOTTEN, EMPTY)
            memory.commit(before, after, decide(lane), Commit(lane.rule.rules_at(before), lost))
        return memory

    def _next_onward(self, clock: Clock) -> Chunk:
        """The chunk with which the history of `clock` goes on; during a rewrite one as long as the last before it."""
        now, chunk = self.chunk, clock.chunk
        assert chunk is not None
        if chunk.start == clock.history:
            return chunk
        if self._onward is not None and self._onward.start == clock.history:
            return self._onward
        assert now is not None
        return Chunk(len(clock.starts), clock.history, now.frames)

    def _make_room(self, chunk: Chunk, coming: Sequence[_Next], again: bool) -> None:
        """Grows the regions for a stream that goes on in chunks of this size, unless that was done before."""
        rooms = {} if again else self._rooms(chunk)
        written = FrameSet.interval(chunk.start, chunk.stop)
        grown = False
        for lane, next_ in zip(self.lanes, coming, strict=True):
            # `room` is about streams that only go forward; a rewrite may hold frames on both sides of its chunk.
            held = next_.live & lane.slots.held | next_.behind | written
            room = max(rooms.get(lane.rule.text, 0), len(held) + lane.slots.reserved)
            grown |= room > lane.slots.pages
            lane.slots.grow(room)
        self.layout += grown

    def _rooms(self, chunk: Chunk) -> dict[str, int]:
        """Pages that a head needs from this chunk on, by the text of its rule; empty if that was asked before."""
        self._longest = max(self._longest, chunk.frames)
        rhythm = (chunk.frames, chunk.start % chunk.frames)
        if rhythm in self._rhythms:
            return {}
        self._rhythms.add(rhythm)
        return {rule.text: self.policy.room(rule, chunk, self._longest) + chunk.frames for rule in self.policy.distinct}

    def _settle(self, chunk: Chunk) -> None:
        """The warm-up is over: regions shrink to what the rules need from here on, and frames move together."""
        if self.relaid:
            return  # the pools have not followed yet: where frames lay for them is only known once
        self._rhythms, self._longest = set(), chunk.frames
        rooms = self._rooms(chunk)
        self._rhythms = set()  # the first pass behind it asks again
        for i, lane in enumerate(self.lanes):
            room = max(rooms[lane.rule.text], len(lane.slots.held) + lane.slots.reserved + chunk.frames)
            if room < lane.slots.pages:
                lane.slots, self.relaid[i] = lane.slots.compacted(room)
        self.layout += bool(self.relaid)

    def resolve(self, policy: BoundPolicy) -> None:
        """Goes on under another policy, before the warm-up is over: the heads have been classified.

        Every head keeps its frames; the warm-up of `policy` is that of the one before.
        """
        lanes, lane_of = self.lanes, self.lane_of.copy()
        ((_, amended),) = self.amended.items() if self.amended else (("", Amended()),)
        self.policy, self.planner, self.lanes = policy, Planner(policy, self.batch), []
        self._make_lanes()
        for lane in self.lanes:
            lane.slots = lanes[lane_of[lane.first]].slots.copy()
        self.amended = {rule.text: amended for rule in policy.distinct} if amended != Amended() else {}
        self._rhythms = set()
        self.layout += 1


def _check_held(lane: Lane, coming: _Next, plan: ChunkPlan) -> None:
    """HF-FORGOTTEN if the pass reads a frame that has no page any more."""
    readings = plan.heads[plan.which[lane.first]].readings
    needed = FrameSet.of({int(frame) for reading in readings for frame in reading.frames[:, 0]})
    if coming.memory is not None:
        needed |= coming.offered  # a store may be offered frames that nothing reads now
    missing = needed - lane.slots.held
    check_makeable(lane, coming.kept, f"a pass at frame {plan.chunk.start} under {lane.rule.at(plan.chunk)}")
    if missing:
        raise HeadforceError(
            "HF-FORGOTTEN",
            found=f"a pass at frame {plan.chunk.start} under {lane.rule.at(plan.chunk)}, which needs frames {missing}",
            needed=f"frames that are still held: {lane.slots.held}",
        )
