"""Hypothesis strategies: operators, rules, policies, schedules and decisions, for tests of whatever works on them.

Needs the package `hypothesis`. Operators are drawn from the registry, those of plugins included: their arguments come
from the types of their fields, and from the field's metadata `words` where an argument is a word.

    @given(rules(), schedules())
    def test_my_target(rule, schedule): ...
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import MISSING, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from hypothesis import assume
from hypothesis import strategies as st

from ..errors import HeadforceError
from ..policy import (
    BUSIEST,
    Carry,
    Clamp,
    Collapse,
    Decide,
    FrameSet,
    Keep,
    Op,
    Policy,
    Rule,
    Schedule,
    Warmup,
    load_ops,
)
from ..policy.node import Term
from ..policy.op import arguments
from ..policy.ops.episodic import Evicted
from ..policy.ops.native import Native
from ..policy.positions import CONTIGUOUS, PositionMap
from ..policy.switch import YES_NO, Answer, Cut, Flush, KeepAll, Recache

LARGEST = 9
"""Largest whole number drawn as an argument: small sets show the same faults as large ones, and are read faster."""


def schedules(chunks: int = 10, frames: int = 5) -> st.SearchStrategy[Schedule]:
    """Up to `chunks` chunks of up to `frames` frames, all of one size or each of its own."""
    size = st.integers(1, frames)
    regular = st.tuples(size, st.integers(1, chunks)).map(lambda pair: Schedule((pair[0],) * pair[1]))
    irregular = st.lists(size, min_size=1, max_size=chunks).map(lambda sizes: Schedule(tuple(sizes)))
    return regular | irregular


def maps() -> st.SearchStrategy[PositionMap]:
    """Position maps of a single operator."""
    distance = st.integers(1, 2 * LARGEST)
    few = st.integers(1, LARGEST)
    return st.one_of(st.just(Keep()), distance.map(Collapse), distance.map(Clamp), st.builds(Carry, distance, few, few))


def ops(kind: type[Op] | None = None, native: Rule | None = None) -> st.SearchStrategy[Op]:
    """Operators of one kind, or all that have no state and may be joined. `native` fills in what `native()` reads.

    Raises TypeError, naming operator and argument, if no value is known for an argument.
    """
    if kind is None:
        kinds = [k for k in load_ops().values() if not k.stateful and k.reads_chunk and (native or k is not Native)]
        return st.sampled_from(kinds).flatmap(lambda kind: ops(kind, native))
    if kind is Native:
        return st.just(Native(native))
    return _built(kind, {field.name: _values(kind, field) for field in arguments(kind)})


@st.composite
def _built(draw: st.DrawFn, kind: Any, values: dict[str, st.SearchStrategy[Any]]) -> Any:
    for _ in range(5):
        try:
            return kind(**{name: draw(value) for name, value in values.items()})
        except HeadforceError as error:
            if error.code != "HF-OP-ARG":
                raise
    assume(False)
    return None


def _values(kind: Any, field: Any) -> st.SearchStrategy[Any]:
    hint = get_type_hints(kind)[field.name]
    choices: list[st.SearchStrategy[Any]] = []
    for part in get_args(hint) or (hint,):
        if part is bool:
            choices.append(st.booleans())
        elif part is int:
            choices.append(st.integers(0, LARGEST))
        elif part is float:
            choices.append(st.floats(-1, 1))
        elif part is NoneType:
            choices.append(st.none())
        elif part is str and "words" in field.metadata:
            choices.append(st.sampled_from(field.metadata["words"]))
        elif part in getattr(kind, "nested", {}).values() and part is not Evicted:
            choices.append(_built(part, {inner.name: _values(part, inner) for inner in arguments(part)}))
    if not choices and field.default is MISSING:
        raise TypeError(f"{kind.__name__}.{field.name}: no value to try; list the field's `words` in its metadata")
    return st.one_of(choices) if choices else st.just(field.default)


@st.composite
def rules(
    draw: st.DrawFn,
    *,
    stores: bool = False,
    remapped: bool = True,
    intersections: bool = True,
    native: Rule | None = None,
    most: int = 4,
    tokens: int = 12,
    parts: bool = True,
) -> Rule:
    """Rules of up to `most` operators joined at random.

    Args:
        stores: also up to two operators with state, fed by the chunk, by another operator or by each other.
        remapped: also position maps, on operators or `@contiguous`.
        intersections: join by `&` too.
        native: what `native()` reads; without it the operator is not used.
        tokens: of a frame, for stores that keep parts of frames. parts: with `stores`, also such ones.
    """
    position_maps = maps() if remapped else st.just(Keep())
    drawn = draw(st.lists(st.tuples(ops(native=native), position_maps), min_size=1, max_size=most))
    terms = [Term(op, position_map) for op, position_map in drawn]
    if stores:
        terms = _with_stores(draw, terms, position_maps, tokens if parts else 0)
    parts = [Rule(term) for term in draw(st.permutations(terms))]
    while len(parts) > 1:
        i = draw(st.integers(0, len(parts) - 2))
        both = intersections and draw(st.integers(0, 2)) == 0
        parts[i : i + 2] = [parts[i] & parts[i + 1] if both else parts[i] | parts[i + 1]]
    try:
        rule = parts[0].checked()
    except HeadforceError:
        assume(False)  # a store with pages of its own behind an &
        raise
    plain = all(term.map == Keep() for term in rule.terms)
    return rule @ CONTIGUOUS if remapped and plain and draw(st.booleans()) else rule


def _with_stores(
    draw: st.DrawFn, terms: list[Term], position_maps: st.SearchStrategy[PositionMap], tokens: int
) -> list[Term]:
    terms = [replace(term, label=f"part{i}") for i, term in enumerate(terms)]
    for kind in [kind for kind in load_ops().values() if kind.stateful and (tokens or not kind.paged)]:
        for i in range(draw(st.integers(0, 2))):
            op: Any = draw(ops(kind))
            feeders = [term.store for term in terms if not term.op.paged]
            if kind.paged and i:
                break  # one of each kind is enough, and pages of its own make plans large
            if Evicted in kind.nested.values() and (kind.paged or draw(st.booleans())):
                op = replace(op, source=Evicted(draw(st.sampled_from(feeders))))
            try:
                op = op.resolved(tokens)
            except HeadforceError as error:
                if error.code != "HF-SEGMENTS":
                    raise
                break  # not cut into as many pieces
            terms.append(Term(op, draw(position_maps), f"{kind.name}{i}"))
    return terms


@st.composite
def policies(
    draw: st.DrawFn,
    layers: int = 3,
    heads: int = 4,
    *,
    horizon: int = 1000,
    stores: bool = False,
    names: st.SearchStrategy[str] | None = None,
    tokens: int = 12,
) -> Policy:
    """Policies for a model of `layers` x `heads`: classes, a default, whole layers, single heads, a warm-up.

    `names` draws the names of classes. Policies always have a horizon, so that any rule can be bound.
    """
    words = st.sampled_from(["static", "dynamic", "local", "far"]) if names is None else names
    classes = draw(st.dictionaries(words, rules(stores=stores, tokens=tokens), min_size=1, max_size=3))
    name = st.sampled_from(sorted(classes))
    layer = st.integers(0, layers - 1)
    members: dict[int, dict[str, tuple[int, ...]]] = {}
    for number, of_head in draw(st.dictionaries(layer, st.lists(st.none() | name, max_size=heads))).items():
        members[number] = {
            n: tuple(head for head, its in enumerate(of_head) if its == n) for n in dict.fromkeys(of_head) if n
        }
    warmup = st.builds(Warmup, st.integers(1, 3), rules()) | st.builds(Warmup, st.integers(1, 3))
    return Policy(
        classes,
        default=draw(st.none() | name),
        heads=members,
        layers=draw(st.dictionaries(layer, name)),
        warmup=draw(st.none() | warmup),
        horizon=horizon,
        position_range=draw(st.none() | st.integers(horizon, 2 * horizon)),
        on_switch=draw(st.dictionaries(name, answers(), max_size=2)),
    )


def answers() -> st.SearchStrategy[Answer]:
    """What a class may do with its memory when the prompt switches."""
    few, yes_no = st.integers(1, LARGEST), st.sampled_from(YES_NO)
    return st.one_of(
        st.just(KeepAll()),
        st.builds(Flush, st.integers(0, LARGEST), yes_no, yes_no),
        st.builds(Recache, few, yes_no, yes_no),
        st.builds(Cut, few),
    )


def novel_by(novel: Callable[[str, tuple[FrameSet, ...], FrameSet], tuple[bool, FrameSet]]) -> Decide:
    """Decisions in which `novel` says what is novel, and selections take the newest."""
    return Decide(novel, BUSIEST.choose)


def decisions() -> st.SearchStrategy[Decide]:
    """What stores decide at their commits: at random what is novel, and what it replaces."""
    return st.integers(0, 2**32 - 1).map(decide_by)


def decide_by(seed: int) -> Decide:
    """Decisions at random, the same for the same seed. They depend on nothing but the order of the questions."""
    source = random.Random(seed)

    def novel(store: str, held: Sequence[FrameSet], candidate: FrameSet) -> tuple[bool, FrameSet]:
        return source.random() < 0.7, source.choice(held) if held else FrameSet()

    def choose(store: str, candidates: FrameSet, count: int) -> FrameSet:
        listed = list(candidates)
        return FrameSet.of(source.sample(listed, min(count, len(listed))))

    return Decide(novel, choose)
