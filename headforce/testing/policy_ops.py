"""The laws of an operator of rules: it is complete, and its fast form, its bounds and what it stores are as it defines.

A store with pages of its own is also run: attention over what its maker makes is compared with attention over what the
operator's `materialize_part` says, in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import sympy
from hypothesis import assume
from hypothesis import strategies as st

from ..errors import HeadforceError
from ..policy import Chunk, Decide, FrameSet, HeadMemory, Op, Rule, Schedule, oracle, parse_rule
from ..policy.node import Term, Union
from ..policy.op import arguments, find_op
from ..policy.ops.episodic import Evicted
from ..policy.ops.window import Window
from ..policy.protocol import lacks
from ..registered import own_docstring
from .laws import EXAMPLES, about, code_of, examine, run_examples, says
from .strategies import decisions, ops, schedules

NATIVE = parse_rule("sink(2) | span(9)")
"""What `native()` stands for here."""

Law = Callable[[type[Op], int], None]


def check_policy_op(op: str | type[Op], *, examples: int = EXAMPLES) -> None:
    """Every law for one operator, by its name or class; AssertionError names the operator and the law.

    `examples` is how many of each law are drawn from the types of the operator's arguments, see `strategies.ops`.
    """
    kind = find_op(op) if isinstance(op, str) else op
    for law in laws_of(kind):
        with about(f"operator {kind.name}: {says(law)}"):
            law(kind, examples)


def laws_of(kind: type[Op]) -> list[Law]:
    """The laws that an operator of this kind has to keep."""
    common: list[Law] = [is_complete, examples_hold, refuses_nonsense, reads_back]
    if not kind.stateful:
        return [*common, frames_are_as_defined, live_frames_suffice, sets_settle]
    return [*common, is_replayed, *([makes_what_it_says] if kind.paged else [])]


def is_complete(kind: type[Op], examples: int) -> None:
    """A frozen dataclass with a docstring of its own and every method of its protocol."""
    assert dataclasses.is_dataclass(kind), "it is no dataclass"
    assert kind.__dataclass_params__.frozen, "it is not frozen"  # type: ignore[attr-defined]
    assert own_docstring(kind), "it lacks a docstring of its own"
    missing = lacks(kind)
    assert not missing, f"it lacks {', '.join(missing)}"


def examples_hold(kind: type[Op], examples: int) -> None:
    """The examples of its docstring are true."""
    run_examples(kind)


def refuses_nonsense(kind: type[Op], examples: int) -> None:
    """An argument without a meaning is refused with HF-OP-ARG."""
    for field in arguments(kind):
        others = {f.name: 1 for f in arguments(kind) if f.default is dataclasses.MISSING}
        code = code_of(partial(kind, **{**others, field.name: object()}))
        assert code, f"{field.name}=object() is accepted"
        assert code == "HF-OP-ARG", f"{field.name}=object() is refused with {code}"


def reads_back(kind: type[Op], examples: int) -> None:
    """Its text reads back as the same operator."""

    def law(op: Any) -> None:
        feeder = f"window(1) as {op.feeds_from} | " if op.feeds_from else ""
        again = parse_rule(feeder + str(op)).terms[-1].op
        assert again == op, f"{op!r} reads back as {again!r}"

    examine(law, examples, op=ops(kind))


def frames_are_as_defined(kind: type[Op], examples: int) -> None:
    """`frames` is what `materialize` says, of committed frames alone, for every query frame."""

    def law(op: Any, chunk: Chunk) -> None:
        for query in chunk.queries:
            found, defined = op.frames(chunk, query), op.materialize(chunk, query)
            assert set(found) == defined, f"{op} at {chunk}, query {query}: {found}, and by definition {defined}"
            assert found <= FrameSet.interval(0, chunk.start), f"{op} reads {found} at {chunk}"
        if not op.by_query:
            assert len({op.frames(chunk, query) for query in chunk.queries}) == 1, f"{op} is not `by_query`"

    chunks = st.builds(Chunk, st.integers(0, 9), st.integers(0, 60), st.integers(1, 6))
    examine(law, examples, op=ops(kind, NATIVE), chunk=chunks)


def live_frames_suffice(kind: type[Op], examples: int) -> None:
    """What is held is never too little to read from, nor more than `bound`."""

    def law(op: Any, schedule: Schedule) -> None:
        held = FrameSet()
        for chunk in schedule:
            live = op.live(chunk)
            assert live <= held, f"{op} wants {live} at {chunk}, which was let go of"
            assert all(op.frames(chunk, query) <= live for query in chunk.queries), f"{op} reads what is not live"
            most = op.bound(sympy.Integer(chunk.start), sympy.Integer(chunk.frames))
            assert len(live) <= most, f"{op} holds {live} at {chunk}, more than {most} frames"
            held = live | FrameSet.of(chunk.queries)

    examine(law, examples, op=ops(kind, NATIVE), schedule=schedules())


def sets_settle(kind: type[Op], examples: int) -> None:
    """From `settles` on, sets stay or move along every `repeats` chunks, unless they grow without bound."""

    def law(op: Any, frames: int) -> None:
        if sympy.sympify(op.bound(sympy.oo, sympy.Integer(frames))).is_infinite:
            return
        period = op.repeats() * frames
        start = -(-op.settles() // frames) * frames
        for chunk in (Chunk(0, s, frames) for s in range(start, start + 2 * period, frames)):
            now, later = op.live(chunk), op.live(Chunk(0, chunk.start + period, frames))
            moved = FrameSet(now.bits << period)
            # native() is a union of both kinds of set, and settles as a rule does: in size.
            same = len(now) == len(later) if kind.name == "native" else later in (now, moved)
            assert same, f"{op} holds {now} at {chunk} and {later} a period of {period} frames later"

    examine(law, examples, op=ops(kind, NATIVE), frames=st.integers(1, 4))


def is_replayed(kind: type[Op], examples: int) -> None:
    """The record of its decisions gives back what it holds, of committed frames and within its bound."""

    def law(op: Any, window: int, schedule: Schedule, decide: Decide) -> None:
        rule = _fed(op, window)
        memory, before = HeadMemory(rule), None
        for chunk in schedule:
            if before is not None:
                memory.commit(before, chunk, decide)
            before = chunk
            replayed = oracle.replay(rule, memory.explained(), chunk.start)
            held = {name: set(frames) for name, frames in memory.held.items()}
            assert not held or replayed == held, f"{op} holds {held} at {chunk}, and by its record {replayed}"
            (term,) = rule.stateful
            units = memory.stores.get(term.store, ())
            assert len(units) <= op.slots, f"{op} holds {len(units)} units at {chunk}"
            frames = _frames(term.op, memory.held.get(term.store, FrameSet()))
            assert frames <= FrameSet.interval(0, chunk.start), f"{op} holds {frames} at {chunk}"

    examine(law, examples, op=ops(kind), window=st.integers(1, 4), schedule=schedules(), decide=decisions())


def makes_what_it_says(kind: type[Op], examples: int) -> None:
    """Attention reads of its pages what `materialize_part` says, to the last digit of float64."""
    from ..kernels.rotation import INTERLEAVED, SPLIT_HALF
    from .parts_rig import PartsRig

    seen: list[int] = []

    def law(op: Any, window: int, sizes: list[int], style: str, batch: int) -> None:
        start = 0
        try:
            rig = PartsRig(_fed(op, window), layers=1, heads=2, style=style, batch=batch)
            for frames in sizes:
                rig.check(start, frames)
                rig.check(start, frames)  # a second pass over the same chunk: what it wrote is what counts
                start += frames
        except HeadforceError as error:
            assume(error.code not in ("HF-SEGMENTS", "HF-SCORE"))  # arguments that do not suit frames of 4 x 6 tokens
            raise
        assert rig.stream.plan is not None
        seen.append(sum(len(item.parts) for item in rig.stream.plan.of(0, 0).readings[-1].parts))

    few = max(4, examples // 6)  # streams are slow
    drawn = {"window": st.integers(1, 3), "sizes": st.lists(st.integers(1, 3), min_size=4, max_size=6)}
    styles = st.sampled_from([INTERLEAVED, SPLIT_HALF])
    examine(law, few, op=ops(kind), style=styles, batch=st.integers(1, 2), shrink=False, **drawn)
    assert any(seen), "none of its parts was ever read"


def _fed(op: Any, window: int) -> Rule:
    """A rule with one store, and the window that feeds it if it wants one."""
    if Evicted in op.nested.values():
        op = replace(op, source=Evicted("recent"))
    if op.paged:
        try:
            op = op.resolved(24)
        except HeadforceError:
            assume(False)
    return Rule(Union((Term(op, label="store"), Term(Window(window), label="recent")))).checked()


def _frames(op: Op, held: FrameSet) -> FrameSet:
    """The frames behind what a store holds."""
    return FrameSet.of(f for part in op.parts(held) for f in part.frames) if op.paged else held
