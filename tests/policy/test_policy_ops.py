"""Every registered operator keeps the laws of the kit, and is in the docs; and the laws are broken by operators that
break them.

A new operator is tested here as soon as it is registered; what it lacks is reported by its name.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import sympy

from headforce.policy import FrameSet, Op, Write, load_ops
from headforce.policy import op as registry
from headforce.policy.op import arguments
from headforce.policy.ops.window import Window
from headforce.policy.protocol import lacks
from headforce.testing import check_policy_op
from headforce.testing.policy_ops import laws_of

OPS = load_ops()
DOCS = Path(__file__).parents[2] / "docs" / "policy.md"


@pytest.mark.parametrize(
    ("name", "law"), [pytest.param(n, law, id=f"{n}-{law.__name__}") for n in OPS for law in laws_of(OPS[n])]
)
def test_law(name, law):
    law(OPS[name], 25)


@pytest.mark.parametrize("name", [name for name, kind in OPS.items() if kind.__module__.startswith("headforce.")])
def test_operator_is_in_the_docs(name):
    title = f"### `{name}({', '.join(field.name for field in arguments(OPS[name]))})`"
    assert title in DOCS.read_text(encoding="utf-8"), f"docs/policy.md lacks the section {title}"


# --- the laws are laws ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken(Window):
    """A window, until a subclass breaks it."""

    name = "window"


class Undocumented(Broken):
    __doc__ = None


class Unrefusing(Broken):
    """Takes anything."""

    def __post_init__(self):
        pass


class OffByOne(Broken):
    """Fast and wrong."""

    def frames(self, chunk, query):
        return FrameSet.interval(chunk.start - self.size + 1, chunk.start)


class Forgetful(Broken):
    """Lets go of what it reads."""

    def live(self, chunk):
        return self.frames(chunk, chunk.start).newest(self.size - 1)


class Boastful(Broken):
    """Holds more than it says."""

    def bound(self, s, n):
        return sympy.Min(s, self.size - 1)


class Unsettled(Broken):
    """Says that it settles before it does."""

    def settles(self):
        return 0


class Lying(Broken):
    """Has an example that is not true.

    >>> 1 + 1
    3
    """


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Undocumented, "lacks a docstring"),
        (Unrefusing, "size=object.. is accepted"),
        (OffByOne, "by definition"),
        (Forgetful, "reads what is not live"),
        (Boastful, "more than"),
        (Unsettled, "a period of"),
        (Lying, "Expected:"),
    ],
)
def test_a_broken_law_is_reported_by_name(kind, words, monkeypatch):
    monkeypatch.setitem(registry._OPS, "window", kind)
    with pytest.raises(AssertionError, match=f"operator window: (.|\n)*{words}"):
        check_policy_op(kind)


def test_a_missing_part_is_reported_by_name():
    @dataclass(frozen=True)
    class Unfinished(Op):
        def frames(self, chunk, query):
            return FrameSet()

    assert lacks(Unfinished) == ["materialize", "bound", "settles"]


def test_a_store_that_invents_frames_is_found(monkeypatch):
    class Inventing(OPS["episodic"]):
        """Writes a frame that nobody has made yet."""

        def offered(self, store, held, arrived, decide, when):
            return (Write(FrameSet.of([999])),) if not held else ()

    monkeypatch.setitem(registry._OPS, "episodic", Inventing)
    with pytest.raises(AssertionError, match="operator episodic: The record of its decisions"):
        check_policy_op(Inventing)


@pytest.mark.parametrize("name", ["select", "merge"])
def test_a_maker_that_is_a_little_off_is_found(name, monkeypatch):
    from headforce.lowering.state import making

    real = making.load_makers()[name]
    monkeypatch.setitem(making._MAKERS, name, lambda *given: tuple(made * 1.001 for made in real(*given)))
    with pytest.raises(AssertionError, match=f"operator {name}: Attention reads"):
        check_policy_op(name)
