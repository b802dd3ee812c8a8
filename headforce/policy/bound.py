"""A policy meets a model: every head gets its rule, and storage is derived from what can still be read."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import sympy

from ..errors import HeadforceError
from .chunk import Chunk
from .frameset import FrameSet
from .node import NOTHING_HELD, Held
from .op import Op
from .ops.native import UNMODIFIED, Native
from .rule import Item, Rule
from .switch import KEEP_ALL, Answer
from .symbolic import N, S, limit

if TYPE_CHECKING:
    from .policy import Policy


@dataclass(frozen=True)
class HeadRule:
    """What one head remembers over a whole stream: `warmup` for the first `warmup_chunks` chunks, then `rule`."""

    rule: Rule
    warmup: Rule | None = None
    warmup_chunks: int = 0
    on_switch: Answer = KEEP_ALL

    @cached_property
    def text(self) -> str:
        """The rule as written. Which operator a frame is listed under depends on the order of operands."""
        begin = "" if self.warmup is None else f"{self.warmup} for {self.warmup_chunks} chunks, then "
        end = "" if self.on_switch == KEEP_ALL else f"; at a prompt switch {self.on_switch}"
        return begin + str(self.rule) + end

    def at(self, chunk: Chunk) -> Rule:
        """The rule in force for `chunk`."""
        return self.rule if self.warmup is None or self.rules_at(chunk) else self.warmup

    def rules_at(self, chunk: Chunk) -> bool:
        """Whether `rule` is in force for `chunk`, and not the warm-up."""
        return self.warmup is None or chunk.index >= self.warmup_chunks

    def read(self, chunk: Chunk, query: int, held: Held = NOTHING_HELD) -> tuple[Item, ...]:
        """What query frame `query` reads besides its chunk."""
        return self.at(chunk).read(chunk, query, held)

    def live(self, chunk: Chunk, held: Held = NOTHING_HELD) -> FrameSet:
        """The committed frames that this chunk or a later one can read: what must be held while it runs.

        Later chunks may have any size: frames are kept that only a chunk of one frame would still reach. A warm-up
        rule that depends on the query is followed as if the warm-up went on.
        """
        if self.warmup is None or self.rules_at(chunk):
            return self.rule.live(chunk, held)
        waiting = self.warmup_chunks - chunk.index - 1
        first = Chunk(self.warmup_chunks, chunk.stop + waiting, 1)
        later = self.rule.live(first, held).below(chunk.start)
        # Stores fill from the first commit on, so what they hold and may be offered is held during the warm-up too.
        return self.warmup.live(chunk, held) | later | self.rule.weighed(chunk, held)

    def reserve(self, committed: int, longest: int) -> int:
        """Frames that stores may hold in the worst case after `committed` frames in chunks of at most `longest`."""
        s, n = sympy.Integer(committed), sympy.Integer(longest)
        return int(sum(term.op.bound(s, n) for term in self.rule.stateful if not term.op.paged))

    @property
    def pages(self) -> int:
        """Pages for the parts that stores keep, which are there from the beginning."""
        return self.rule.pages

    @cached_property
    def most_parts(self) -> int:
        """Most parts that a query reads."""
        return sum(term.op.most_parts for term in self.rule.paged)

    def most(self, chunk: Chunk, longest: int) -> int:
        """Most frames held while `chunk` runs, whatever the stores hold, if no chunk was longer than `longest`."""
        size = len(self.live(chunk))
        if len(self.rule.stateful) == len(self.rule.paged):
            return size
        early = len(self.warmup.live(chunk)) if self.warmup and chunk.index < self.warmup_chunks else 0
        ever = early + int(self.rule.bound(sympy.Integer(chunk.start), sympy.Integer(longest)))
        return min(chunk.start, size + self.reserve(chunk.start, longest), ever)


LOOK_AHEAD = 4096
"""Most chunks that are looked at one by one, after a warm-up, to find the largest need of a stream."""


@dataclass(frozen=True)
class Capacity:
    """Pages one head must have room for, those of frames and those of parts: `peak` at any time, `steady` after the
    warm-up."""

    peak: int
    steady: int


@dataclass(frozen=True)
class BoundPolicy:
    """The rules of a model's heads. `rules[layer][head]` and the `classes` of the same shape (None: native)."""

    policy: Policy
    rules: tuple[tuple[HeadRule, ...], ...]
    classes: tuple[tuple[str | None, ...], ...]
    native: Rule | None

    @property
    def layers(self) -> int:
        return len(self.rules)

    @property
    def heads(self) -> int:
        return len(self.rules[0])

    @cached_property
    def distinct(self) -> tuple[HeadRule, ...]:
        """The rules that are written differently, in the order of their first head. Plans are made once for each."""
        seen: dict[str, HeadRule] = {}
        for row in self.rules:
            for rule in row:
                seen.setdefault(rule.text, rule)
        return tuple(seen.values())

    @cached_property
    def reads_native(self) -> bool:
        """Whether any head reads what the unmodified model reads."""
        rules = [r for rule in self.distinct for r in (rule.rule, rule.warmup) if r is not None]
        return any(isinstance(term.op, Native) for rule in rules for term in rule.terms)

    def shared(self, heads: int) -> BoundPolicy:
        """The policy of the K/V heads, of each of which `heads` adjacent query heads read.

        Raises HF-OWNED for query heads that read of one and remember differently.
        """
        for layer, row in enumerate(self.rules):
            for first in range(0, len(row), heads):
                other = next((h for h in range(first, first + heads) if row[h].text != row[first].text), None)
                if other is not None:
                    raise HeadforceError(
                        "HF-OWNED",
                        site=f"layer {layer}",
                        found=f"heads {first} and {other}, which share a K/V head, under {row[first].rule} and "
                        f"{row[other].rule}",
                        needed=f"one class for every {heads} heads that share one, or view mode",
                    )
        rules = tuple(row[::heads] for row in self.rules)
        return BoundPolicy(self.policy, rules, tuple(row[::heads] for row in self.classes), self.native)

    def check_horizon(self, chunk: Chunk) -> None:
        """HF-HORIZON if the chunk goes past the policy's horizon."""
        horizon = self.policy.horizon
        if horizon is not None and chunk.stop > horizon:
            raise HeadforceError(
                "HF-HORIZON",
                found=f"a chunk of frames {chunk.start} to {chunk.stop - 1}",
                needed=f"a stream of at most {horizon} frames",
            )

    def need(self, rule: HeadRule, chunk: Chunk, longest: int = 0) -> int:
        """Most committed frames that a head with `rule` holds while `chunk` runs.

        `longest` is the length of the longest chunk before it, which a store of whole chunks may still hold.
        """
        return rule.most(chunk, max(longest, chunk.frames))

    def capacity(self, rule: HeadRule, chunks: Iterable[Chunk]) -> Capacity:
        """Room that a head with `rule` needs over a stream of these chunks."""
        peak = steady = longest = 0
        for chunk in chunks:
            self.check_horizon(chunk)
            size = self.need(rule, chunk, longest) + rule.pages
            longest = max(longest, chunk.frames)
            peak = max(peak, size)
            if chunk.index >= rule.warmup_chunks:
                steady = max(steady, size)
        return Capacity(peak, steady)

    def endless(self, rule: HeadRule, frames: int, first: Chunk | None = None) -> Iterator[Chunk]:
        """Chunks of `frames` frames, from `first` on, that are enough to see the largest need of an endless stream.

        Sets repeat, moved along, once every operator has settled; with a horizon the stream ends there. There may be
        very many: periods of strides multiply.
        """
        horizon = self.policy.horizon
        chunk = first or Chunk(0, 0, frames)
        steps = 1 + math.lcm(rule.rule.repeats(), frames) // frames
        settled = rule.rule.settles() + rule.reserve(sys.maxsize, frames)
        count = rule.warmup_chunks + -(-settled // frames) + steps
        if horizon is not None:
            fit = max(0, (horizon - chunk.stop) // frames)
            count = fit if limit(rule.rule, frames) is None else min(count, fit)
        yield chunk
        for _ in range(count):
            chunk = chunk.then(frames)
            yield chunk

    def room(self, rule: HeadRule, first: Chunk, longest: int = 0) -> int:
        """Most pages that a head with `rule` takes in a stream that goes on from `first` in chunks of its size.

        `longest` is the length of the longest chunk before. Exact within `LOOK_AHEAD` chunks; a rule whose need may
        still grow behind them gets the room of its symbolic bound.
        """
        longest = max(longest, first.frames)
        ever = [n for n in (limit(rule.rule, longest), self.policy.horizon) if n is not None]
        size = 0
        for i, chunk in enumerate(self.endless(rule, first.frames, first)):
            size = max(size, self.need(rule, chunk, longest))
            if chunk.index >= rule.warmup_chunks and size >= min(ever):
                break
            if i >= LOOK_AHEAD + rule.warmup_chunks:
                return max(size, min(ever)) + rule.pages
        return size + rule.pages


def bind(policy: Policy, layers: int, heads: int, native: Rule | None, tokens: int | None) -> BoundPolicy:
    """See `Policy.bind`."""
    _check_shape(policy, layers, heads)

    def resolve(op: Op) -> Op:
        if isinstance(op, Native) and native is not None:
            return Native(native)
        return op if tokens is None else op.resolved(tokens)

    def resolved(rule: Rule) -> Rule:
        if native is None and any(isinstance(term.op, Native) for term in rule.terms):
            raise HeadforceError("HF-NATIVE", found=f"native() in {rule}", needed="the rule of the unmodified model")
        return rule.replaced(resolve)

    if native is not None:
        Native(native)  # refuses a rule that cannot be what a model reads, also when no head uses it
    warmup = policy.warmup
    warm_rule = resolved(warmup.rule) if warmup else None
    classes = tuple(tuple(policy.class_of(layer, head) for head in range(heads)) for layer in range(layers))
    of_class = {
        name: HeadRule(
            resolved(UNMODIFIED if name is None else policy.classes[name]),
            warm_rule,
            warmup.chunks if warmup else 0,
            policy.on_switch.get(name, KEEP_ALL) if name is not None else KEEP_ALL,
        )
        for name in {name for row in classes for name in row}
    }
    rules = tuple(tuple(of_class[name] for name in row) for row in classes)
    bound = BoundPolicy(policy, rules, classes, native)
    for rule in bound.distinct:
        _check_bounded(policy, rule)
    return bound


def _check_shape(policy: Policy, layers: int, heads: int) -> None:
    for name, count in (("layers", layers), ("heads", heads)):
        if count < 1:
            raise HeadforceError("HF-POLICY-SHAPE", found=f"a model with {count} {name}", needed="at least 1")
    if policy.made_for not in (None, (layers, heads)):
        # Before heads are looked at one by one: those of a smaller model are all there.
        raise HeadforceError(
            "HF-POLICY-SHAPE",
            site="made_for",
            found="labels, or a policy, of a model with {} layers of {} heads".format(*policy.made_for),
            needed=f"those of this model, which has {layers} layers of {heads} heads",
        )
    named: list[tuple[str, int, tuple[int, ...]]] = [(f"layers.{layer}", layer, ()) for layer in policy.layers]
    for layer, by_class in policy.heads.items():
        named += [(f"heads.{layer}.{name}", layer, members) for name, members in by_class.items()]
    for place, layer, members in named:
        if layer >= layers:
            raise HeadforceError(
                "HF-POLICY-SHAPE", site=place, found=f"layer {layer}", needed=f"a layer from 0 to {layers - 1}"
            )
        for head in members:
            if head >= heads:
                raise HeadforceError(
                    "HF-POLICY-SHAPE", site=place, found=f"head {head}", needed=f"a head from 0 to {heads - 1}"
                )


def _check_bounded(policy: Policy, rule: HeadRule) -> None:
    if policy.horizon is None and limit(rule.rule, 1) is None:
        raise HeadforceError(
            "HF-UNBOUNDED",
            found=f"{rule.rule}, which holds {rule.rule.bound(S, N)} of s committed frames",
            needed="a bound or a horizon",
        )
