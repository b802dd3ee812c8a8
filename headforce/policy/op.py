"""Policy operators: what makes one, and the registry that finds them.

An operator is one frozen dataclass in one file of `policy/ops`, or of any package that names its module in the entry
point group `headforce.policy_ops`. There is no central list: the decorator registers it.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import HeadforceError, nearest
from .chunk import Chunk
from .frameset import FrameSet

if TYPE_CHECKING:
    import sympy

    from .parts import Mixture, Part
    from .positions import PositionMap
    from .rule import Rule

ENTRY_POINTS = "headforce.policy_ops"

SCOPES = ("head", "layer", "model", "every")
"""Among which heads a store is one and the same: none but the head itself, the heads of its layer that have the rule,
those of the whole model, or those of every video besides."""


class Composable:
    """Lets operators and rules be joined in Python as they are in text: `Sink(1) @ Collapse(21) | Window(1)`."""

    def as_rule(self) -> Rule:
        raise NotImplementedError

    def __or__(self, other: Composable) -> Rule:
        return self.as_rule().union(other.as_rule())

    def __and__(self, other: Composable) -> Rule:
        return self.as_rule().intersection(other.as_rule())

    def __matmul__(self, position_map: PositionMap | str) -> Rule:
        return self.as_rule().mapped(position_map)


class Op(Composable):
    """Base of all operators.

    A subclass is a frozen dataclass whose fields are the operator's arguments. A field that takes words lists them in
    its metadata, `field(metadata={"words": (...)})`; tests draw arguments from the fields' types and words. It defines

    - `frames(chunk, query)`: the committed frames that a query frame reads, a subset of 0..chunk.start-1;
    - `materialize(chunk, query)`: the same set by the plainest possible loop, the definition the fast one is tested
      against;
    - `live(chunk)`: the frames below chunk.start that this chunk or a later one can read;
    - `bound(s, n)`: how many frames that is at most, as a sympy expression of the committed frames s if no chunk is
      longer than n frames;
    - `settles()` and `repeats()`: with chunks of one size, and from `settles()` committed frames on, the set either
      stays as it is, or is the set of `repeats()` frames earlier moved along and lies within the newest `settles()`
      frames (unless the operator is unbounded).

    `by_query` is true when query frames of one chunk read different frames. A `stateful` operator's frames depend on
    recorded decisions instead; it derives from `memory.StoreOp`, or from `memory.PagedStore` if it keeps parts of
    frames. A head whose rule is an operator without `reads_chunk` does not even read its own chunk.
    """

    name: ClassVar[str]
    stateful: ClassVar[bool] = False
    paged: ClassVar[bool] = False
    reads_chunk: ClassVar[bool] = True
    feeds_from: str = ""
    """Stateful operators: the name of the operator whose evicted frames are the candidates."""
    scope: str = "every"
    """Stateful operators: among which heads the store is one and the same, see `SCOPES`."""
    nested: ClassVar[dict[str, type]] = {}
    """Helpers that may stand as an argument, by name: `novel(0.9)` in `episodic`."""

    unwritten: str = ""
    """What `str` leaves out although it is part of the meaning; counts in `Rule.digest`."""

    @property
    def by_query(self) -> bool:
        return False

    def frames(self, chunk: Chunk, query: int) -> FrameSet:
        raise NotImplementedError

    def materialize(self, chunk: Chunk, query: int) -> set[int]:
        raise NotImplementedError

    def live(self, chunk: Chunk) -> FrameSet:
        # Right for every operator whose frames, once out of sight, never come back into it.
        return self.frames(chunk, chunk.start)

    def bound(self, s: sympy.Expr, n: sympy.Expr) -> sympy.Expr:
        raise NotImplementedError

    def settles(self) -> int:
        raise NotImplementedError

    def repeats(self) -> int:
        return 1

    @property
    def pages(self) -> int:
        """Pages that the operator needs for parts of frames, besides those of whole frames."""
        return 0

    @property
    def most_parts(self) -> int:
        """Most parts of frames that it can hold."""
        return 0

    def parts(self, held: FrameSet) -> tuple[Part, ...]:
        """The parts that the units in `held` stand for, and where each of them lies."""
        return ()

    def sources(self, part: Part, had: Sequence[Part]) -> tuple[int, ...]:
        """The frames out of which `part` is made, where the store has the parts `had`.

        All of its frames; a store whose parts change in place needs only those that they lack.
        """
        return part.frames

    def materialize_part(self, part: Part, height: int, width: int) -> list[Mixture]:
        """The rows of a part by the plainest possible loop, for frames of `height` x `width` tokens: the definition
        that what is made is tested against."""
        raise NotImplementedError

    def parts_of_frame(self, tokens: int) -> int:
        """Into how many parts it cuts a frame of `tokens` tokens."""
        return 1

    def resolved(self, tokens: int) -> Op:
        """The operator for frames of `tokens` tokens; HF-SEGMENTS if it cannot cut them."""
        return self

    def as_rule(self) -> Rule:
        from .node import Term
        from .rule import Rule

        return Rule(Term(self))

    def __str__(self) -> str:
        """The printed form; arguments that have their default value are left out, unless marked `always`."""
        shown = []
        for field in arguments(type(self)):
            value = getattr(self, field.name)
            required = field.default is dataclasses.MISSING
            if required or value != field.default or field.metadata.get("always"):
                text = f'"{value}"' if field.metadata.get("quoted") and isinstance(value, str) else str(value)
                shown.append(text if required else f"{field.name}={text}")
        return f"{self.name}({', '.join(shown)})"

    def need_count(self, *fields: str) -> None:
        """HF-OP-ARG unless each named field is a whole number of at least 1."""
        for name in fields:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise HeadforceError(
                    "HF-OP-ARG",
                    found=f"{name}={value!r} in {self.name}()",
                    needed=f"{name} to be a whole number of at least 1",
                )

    def need_word(self, *fields: str, besides: str = "") -> None:
        """HF-OP-ARG unless each named field is one of the `words` of its metadata."""
        for field in arguments(type(self)):
            value, words = getattr(self, field.name), field.metadata.get("words", ())
            if field.name in fields and value not in words:
                raise HeadforceError(
                    "HF-OP-ARG",
                    found=f"{field.name}={value!r} in {self.name}()",
                    needed=" or ".join(words) + besides,
                )


def is_name(text: object) -> bool:
    """True for a word that may name a store in the text of a rule."""
    return isinstance(text, str) and re.fullmatch(r"[A-Za-z_]\w*", text) is not None


def arguments(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields of an operator that are written in a rule; `hidden` ones are filled in later."""
    return [field for field in dataclasses.fields(kind) if not field.metadata.get("hidden")]


_OPS: dict[str, type[Op]] = {}
_T = TypeVar("_T", bound=type[Op])


def policy_op(name: str) -> Callable[[_T], _T]:
    """Class decorator: registers the operator under the name by which rules call it."""

    def register(kind: _T) -> _T:
        if name in _OPS and _OPS[name].__qualname__ != kind.__qualname__:
            raise ValueError(f"two operators are called {name!r}: {_OPS[name]} and {kind}")
        kind.name = name
        _OPS[name] = kind
        return kind

    return register


def load_ops() -> dict[str, type[Op]]:
    """All operators by name, those of installed plugins included."""
    from . import ops

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return dict(sorted(_OPS.items()))


def find_op(name: str) -> type[Op]:
    """The operator called `name`; HF-OP-UNKNOWN with the nearest valid name if there is none."""
    if name not in _OPS:
        known = load_ops()
        if name not in known:
            raise HeadforceError(
                "HF-OP-UNKNOWN",
                found=f"operator {name!r}{nearest(name, known)}",
                needed="one of " + ", ".join(known),
            )
    return _OPS[name]


def build_op(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Op:
    """The operator `name(*args, **kwargs)`; HF-OP-ARG names an argument that does not exist, is missing or twice."""
    kind = find_op(name)
    return construct(kind, name, args, kwargs)


def construct(kind: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Builds a dataclass from parsed arguments, turning a misfit into HF-OP-ARG."""
    fields = [field.name for field in arguments(kind)]
    signature = f"{name}({', '.join(fields)})"
    unknown = [key for key in kwargs if key not in fields]
    if unknown:
        raise HeadforceError(
            "HF-OP-ARG", found=f"argument {unknown[0]!r}{nearest(unknown[0], fields)}", needed=signature
        )
    taken = fields[: len(args)]
    if len(args) > len(fields) or any(key in taken for key in kwargs):
        raise HeadforceError("HF-OP-ARG", found=f"too many arguments for {name}()", needed=signature)
    given = {*taken, *kwargs}
    missing = [f.name for f in arguments(kind) if f.default is dataclasses.MISSING and f.name not in given]
    if missing:
        raise HeadforceError("HF-OP-ARG", found=f"{name}() without {missing[0]}", needed=signature)
    return kind(*args, **kwargs)
