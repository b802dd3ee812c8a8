"""The state of a stream: what every head holds while a pass runs. Pure integers.

Every pass names the frames it writes; `clock` says what that makes of the passes before. Here the stores take their
decisions, the chunk is planned, and every frame that some head may still read keeps its page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import HeadforceError
from ..policy import BoundPolicy, Chunk, FrameSet, HeadMemory, HeadRule
from ..policy.memory import Decide
from .clock import Clock, Event
from .plan import Cell, ChunkPlan, Planner
from .slots import SlotMap

__all__ = ["Decider", "Event", "Lane", "Stream"]

EMPTY = FrameSet()


@dataclass
class Lane:
    """Heads whose regions always look alike: all heads of one stateless rule, or one head of one video with state.

    `first` is one of them, whose plan is the plan of all.
    """

    rule: HeadRule
    slots: SlotMap
    first: Cell
    memory: HeadMemory | None = None

    @property
    def held(self) -> dict[str, FrameSet]:
        """What the stores of the lane hold."""
        return self.memory.held if self.memory else {}


Decider = Callable[[Lane], Decide]
"""The function that decides what the stores of a lane with state write at a commit. It is asked for while the stream
still is as it was during the last pass, whose keys are therefore still in their pages."""


@dataclass(frozen=True)
class _Next:
    """A lane in the pass that begins: what its stores hold, and the frames that keep their pages."""

    memory: HeadMemory | None
    live: FrameSet
    behind: FrameSet


class Stream:
    """A batch of videos being generated in step under one policy.

    After `begin`, `chunk` and `plan` are those of the running pass, and `lanes[lane_of[layer, row, head]]` says which
    page of a head's region holds which frame. `layout` counts how often regions had to grow: page pools follow it.
    """

    def __init__(self, policy: BoundPolicy, batch: int = 1) -> None:
        self.policy = policy
        self.batch = batch
        self.planner = Planner(policy, batch)
        self.plan: ChunkPlan | None = None
        self.layout = 0
        self.events = dict.fromkeys(Event, 0)
        self.lanes: list[Lane] = []
        self.lane_of: npt.NDArray[np.int32] = np.empty((policy.layers, batch, policy.heads), dtype=np.int32)
        self._make_lanes()
        self._clock = Clock()
        self._onward: Chunk | None = None
        self._rhythms: set[tuple[int, int]] = set()
        self._longest = 0

    def _make_lanes(self) -> None:
        shared: dict[str, int] = {}
        for layer, row, head in np.ndindex(self.lane_of.shape):
            rule = self.policy.rules[layer][head]
            if rule.text not in shared or rule.rule.stateful:
                shared[rule.text] = len(self.lanes)
                memory = HeadMemory(rule.rule) if rule.rule.stateful else None
                self.lanes.append(Lane(rule, SlotMap(0), (layer, row, head), memory))
            self.lane_of[layer, row, head] = shared[rule.text]

    def lane(self, layer: int, head: int, row: int = 0) -> Lane:
        """The lane of one head of one row of the batch."""
        return self.lanes[self.lane_of[layer, row, head]]

    @property
    def chunk(self) -> Chunk | None:
        """The running pass; None before the first one and after `reset`."""
        return self._clock.chunk

    @property
    def history(self) -> int:
        """Frames 0..history-1 are history; those that `chunk` covers are being rewritten."""
        return self._clock.history

    # --- passes -------------------------------------------------------------------------------------------------

    def begin(self, start: int, frames: int, decide: Decider | None = None) -> Event:
        """A pass over frames start..start+frames-1 begins.

        Raises HF-CLOCK for a gap, HF-FORGOTTEN if its rules read frames that are no longer held, HF-HORIZON past the
        policy's horizon, HF-POSITION for a distance out of range, HF-DECISION if a rule has state and nothing decides.
        All of these leave the stream as it was.
        """
        event, clock = self._clock.step(start, frames)
        if event is not Event.REPEAT:
            self._enter(event, clock, decide)
        self.events[event] += 1
        return event

    def reset(self) -> None:
        """Forgets everything; the next pass starts at frame 0."""
        for lane in self.lanes:
            lane.slots.keep(EMPTY)
            if lane.memory is not None:
                lane.memory = HeadMemory(lane.rule.rule)
        self.plan = None
        self._clock = Clock()
        self._onward = None
        self._rhythms = set()
        self._longest = 0

    def _enter(self, event: Event, clock: Clock, decide: Decider | None) -> None:
        chunk = clock.chunk
        assert chunk is not None
        self.policy.check_horizon(chunk)
        # Everything that may be refused is worked out before anything changes.
        coming = [self._next(lane, event, clock, decide) for lane in self.lanes]
        memories = {
            lane.first: next_.memory for lane, next_ in zip(self.lanes, coming, strict=True) if next_.memory is not None
        }
        plan = self.planner.plan(chunk, memories)
        if event is Event.RESET:
            self.reset()
        for lane, next_ in zip(self.lanes, coming, strict=True):
            _check_held(lane, next_, plan)
        self._make_room(chunk, clock.history, coming)
        for lane, next_ in zip(self.lanes, coming, strict=True):
            lane.memory = next_.memory
            lane.slots.keep(next_.live | next_.behind | FrameSet.interval(chunk.start, chunk.stop))
            lane.slots.take(chunk.queries)
        self._onward = self._next_onward(clock)
        self._clock, self.plan = clock, plan

    def _next(self, lane: Lane, event: Event, clock: Clock, decide: Decider | None) -> _Next:
        chunk = clock.chunk
        assert chunk is not None
        if event is Event.RESET:
            return _Next(HeadMemory(lane.rule.rule) if lane.memory else None, EMPTY, EMPTY)
        memory = at_end = self._committed(lane, clock, decide) if lane.memory else None
        rewrite = chunk.start < clock.history
        if at_end is not None and rewrite:
            memory = at_end.at(chunk.start)
        live = lane.rule.live(chunk, memory.held if memory else {})
        behind = EMPTY
        if chunk.stop < clock.history or (rewrite and at_end):
            # The stream may step through the frames behind a rewrite, or go on where its history ends; stores always
            # go on from what they held there.
            resumed = Chunk(len(clock.starts), clock.history, 1)
            behind = lane.rule.live(resumed, at_end.held if at_end else {}) & lane.slots.held
        return _Next(memory, live, behind)

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
            memory.commit(before, after, decide(lane))
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

    def _make_room(self, chunk: Chunk, history: int, coming: Sequence[_Next]) -> None:
        """Grows the regions for a stream that goes on in chunks of this size, unless that was done before."""
        self._longest = max(self._longest, chunk.frames)
        rhythm = (chunk.frames, chunk.start % chunk.frames)
        rooms: dict[str, int] = {}
        if rhythm not in self._rhythms:
            self._rhythms.add(rhythm)
            rooms = {
                rule.text: self.policy.room(rule, chunk, self._longest) + chunk.frames for rule in self.policy.distinct
            }
        grown = False
        for lane, next_ in zip(self.lanes, coming, strict=True):
            room = rooms.get(lane.rule.text, 0)
            if chunk.start < history:
                # `need` is about streams that only go forward; a rewrite may hold frames on both sides of its chunk.
                written = FrameSet.interval(chunk.start, chunk.stop)
                room = max(room, len(next_.live & lane.slots.held | next_.behind | written))
            grown |= room > lane.slots.pages
            lane.slots.grow(room)
        self.layout += grown


def _check_held(lane: Lane, coming: _Next, plan: ChunkPlan) -> None:
    """HF-FORGOTTEN if the pass reads a frame that has no page any more."""
    readings = plan.heads[plan.which[lane.first]].readings
    needed = FrameSet.of({int(frame) for reading in readings for frame in reading.frames[:, 0]})
    if coming.memory is not None:
        needed |= coming.live  # a store may be offered frames that nothing reads now
    missing = needed - lane.slots.held
    if missing:
        raise HeadforceError(
            "HF-FORGOTTEN",
            found=f"a pass at frame {plan.chunk.start} under {lane.rule.at(plan.chunk)}, which needs frames {missing}",
            needed=f"frames that are still held: {lane.slots.held}",
        )
