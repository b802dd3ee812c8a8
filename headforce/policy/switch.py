"""Prompt switches: what a class of heads does with its memory when the prompt changes in the middle of a stream.

A switch happens between two chunks. What is said here is about the frames committed so far: which of them survive, and
from how far away they are seen from then on. Frames that are run again come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import HeadforceError
from .frameset import EMPTY, FrameSet
from .op import arguments
from .ops.native import Native
from .rule import Rule

YES_NO = ("yes", "no")

FARTHEST = 1_000_000
"""Most frames of an answer: more than any stream has, and positions stay 32-bit numbers."""


@dataclass(frozen=True)
class Answer:
    """Base of the answers to a prompt switch.

    Attributes:
        again: newest frames that have to be run again under the new prompt before the next chunk.
        jump: frames by which everything before the switch moves away.
        empties_stores: whether stores lose what they hold.
    """

    name: ClassVar[str]

    @property
    def again(self) -> int:
        return 0

    @property
    def jump(self) -> int:
        return 0

    @property
    def empties_stores(self) -> bool:
        return False

    def survivors(self, rule: Rule, committed: int) -> FrameSet:
        """The frames of 0..committed-1 that heads with `rule` may still read."""
        return FrameSet.interval(0, committed)

    def __str__(self) -> str:
        shown = []
        for item in arguments(type(self)):
            value = getattr(self, item.name)
            if "words" not in item.metadata:
                shown.append(str(value))
            elif value != item.default:
                shown.append(f"{item.name}={value}")
        return f"{self.name}({', '.join(shown)})"

    def _check(self) -> None:
        for item in arguments(type(self)):
            value, words = getattr(self, item.name), item.metadata.get("words")
            if words and value not in words:
                raise HeadforceError(
                    "HF-OP-ARG", found=f"{item.name}={value!r} in {self.name}()", needed=" or ".join(words)
                )
            least = item.metadata.get("least", 1)
            if not words and (type(value) is not int or not least <= value <= FARTHEST):
                raise HeadforceError(
                    "HF-OP-ARG",
                    found=f"{item.name}={value!r} in {self.name}()",
                    needed=f"a whole number of at least {least} and at most {FARTHEST}",
                )


@dataclass(frozen=True)
class KeepAll(Answer):
    """`keep()`: the switch changes nothing. What classes do that nothing is said of."""

    name: ClassVar[str] = "keep"


@dataclass(frozen=True)
class Flush(Answer):
    """`flush(newest, sink=yes, stores=no)`: the newest frames survive, the frames of the rule's sink, and what stores
    hold if they say so (Infinity-RoPE's KV flush, arXiv 2511.20649, is `flush(2)`)."""

    name: ClassVar[str] = "flush"
    newest: int = field(metadata={"least": 0})
    sink: str = field(default="yes", metadata={"words": YES_NO})
    stores: str = field(default="no", metadata={"words": YES_NO})

    def __post_init__(self) -> None:
        self._check()

    @property
    def empties_stores(self) -> bool:
        return self.stores == "no"

    def survivors(self, rule: Rule, committed: int) -> FrameSet:
        return FrameSet.interval(committed - self.newest, committed) | _sink(rule, self.sink, committed)


@dataclass(frozen=True)
class Recache(Answer):
    """`recache(newest, keep_sink=yes, stores=no)`: the newest frames are run again under the new prompt. They and the
    frames of the rule's sink survive, the sink as it was if it does not lie among them (LongLive's KV recache, arXiv
    2509.22622, is `recache(12)`)."""

    name: ClassVar[str] = "recache"
    newest: int
    keep_sink: str = field(default="yes", metadata={"words": YES_NO})
    stores: str = field(default="no", metadata={"words": YES_NO})

    def __post_init__(self) -> None:
        self._check()

    @property
    def again(self) -> int:
        return self.newest

    @property
    def empties_stores(self) -> bool:
        return self.stores == "no"

    def survivors(self, rule: Rule, committed: int) -> FrameSet:
        return _sink(rule, self.keep_sink, committed)


@dataclass(frozen=True)
class Cut(Answer):
    """`cut(jump)`: a new scene. All survive, and are seen `jump` frames farther away (Infinity-RoPE's RoPE cut)."""

    name: ClassVar[str] = "cut"
    distance: int

    def __post_init__(self) -> None:
        self._check()

    @property
    def jump(self) -> int:
        return self.distance


KEEP_ALL = KeepAll()

ANSWERS: dict[str, type[Answer]] = {kind.name: kind for kind in (KeepAll, Flush, Recache, Cut)}


@dataclass(frozen=True)
class Amended:
    """What prompt switches did to the history of a rule: the frames it may not read, and (committed frames at a cut,
    its jump) for every cut."""

    forgotten: FrameSet = EMPTY
    cuts: tuple[tuple[int, int], ...] = ()

    def after(self, answer: Answer, rule: Rule, committed: int, held: FrameSet | None) -> Amended:
        """The same after one more switch.

        A stream that goes back to run frames again may ask for survivors that its rule could not reach any more from
        where it was. `held` are then the frames that still have a page; None for one that does not go back.
        """
        survivors = answer.survivors(rule, committed)
        gone = FrameSet.interval(0, committed) - (survivors if held is None else survivors & held)
        cuts = (*self.cuts, (committed, answer.jump)) if answer.jump else self.cuts
        return Amended(self.forgotten | gone, cuts)

    def rewritten(self, frames: FrameSet) -> Amended:
        """The same once `frames` were run again."""
        return Amended(self.forgotten - frames, self.cuts)

    def moved(self, frame: int) -> int:
        """Frames by which `frame` has moved away."""
        return sum(jump for committed, jump in self.cuts if frame < committed)


def _sink(rule: Rule, kept: str, committed: int) -> FrameSet:
    terms = [of for term in rule.terms for of in (term.op.rule.terms if isinstance(term.op, Native) else (term,))]
    sizes = [term.op.size for term in terms if term.op.name == "sink"]  # type: ignore[attr-defined]
    return FrameSet.interval(0, min(committed, max(sizes, default=0))) if kept == "yes" else EMPTY
