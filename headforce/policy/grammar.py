"""The text of rules: reading it. (Writing it is `str(rule)`; the two are exact inverses.)

    rule  :=  union  |  "(" union ")" "@contiguous"
    union :=  inter ("|" inter)*
    inter :=  atom ("&" atom)*
    atom  :=  call ["@" call] ["as" NAME]  |  "(" union ")"
    call  :=  NAME ["(" [argument ("," argument)*] ")"]
    argument := [NAME "="] (NUMBER | STRING | call)

A STRING is in double quotes, or in single ones; it is written in double ones.
Parentheses may be left out after a map without arguments (`@keep`) and where a word is meant (`unit=frame`), never
after an operator.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from ..errors import HeadforceError, nearest
from .node import Term
from .op import build_op, construct, find_op
from .positions import CONTIGUOUS, KEEP, MAPS, PositionMap
from .rule import Rule
from .switch import ANSWERS, Answer

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|"(?P<string>[^"]*)"|'(?P<single>[^']*)'|(?P<sign>[|&@(),=]))"""
)
_END = ("end", "the end")
_DEEPEST = 32
_LONGEST = 32


def parse_rule(text: str) -> Rule:
    """The rule written in `text`.

    Raises HF-RULE-SYNTAX with the place, HF-OP-UNKNOWN with the nearest name, HF-OP-ARG for a wrong argument and
    HF-RULE-FORM for parts that do not go together.
    """
    return _Reader(text).whole().checked()


def parse_answer(text: str) -> Answer:
    """The answer to a prompt switch written in `text`, such as `flush(2)`. Raises as `parse_rule` does."""
    reader = _Reader(text)
    name = reader.name("an answer to a prompt switch")
    if name not in ANSWERS:
        raise HeadforceError(
            "HF-OP-UNKNOWN", found=f"answer {name!r}{nearest(name, ANSWERS)}", needed="one of " + ", ".join(ANSWERS)
        )
    answer: Answer = construct(ANSWERS[name], name, *reader.arguments({}))
    if reader.peek != _END:
        reader.fail("the end")
    return answer


class _Reader:
    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise HeadforceError("HF-RULE-SYNTAX", found=f"a rule that is {type(text).__name__}", needed="text")
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                self.fail("an operator, a number or one of | & @ ( ) , =", place)
            kind = str(match.lastgroup)
            self.tokens.append(("string" if kind == "single" else kind, match[kind], match.start(kind)))
            place = match.end()
        self.next = 0
        self.depth = 0
        self.group = (-1, -1)
        """First token of the last group in parentheses, and the token after it."""

    def fail(self, needed: str, place: int | None = None) -> NoReturn:
        if place is None:
            place = self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)
        shown = self.text if len(self.text) <= 100 else self.text[:97] + "..."
        raise HeadforceError(
            "HF-RULE-SYNTAX",
            found=f"{self.text[place : place + 12] or 'the end'!r} at character {place + 1} of {shown!r}",
            needed=needed,
        )

    @property
    def peek(self) -> tuple[str, str]:
        return self.tokens[self.next][:2] if self.next < len(self.tokens) else _END

    def take(self, sign: str) -> bool:
        if self.peek == ("sign", sign):
            self.next += 1
            return True
        return False

    def need(self, sign: str) -> None:
        if not self.take(sign):
            self.fail(f"{sign!r}")

    def name(self, what: str) -> str:
        kind, value = self.peek
        if kind != "name":
            self.fail(what)
        self.next += 1
        return value

    def whole(self) -> Rule:
        rule = self.union()
        if self.take("@"):
            if self.name("contiguous") != CONTIGUOUS:
                self.next -= 1
                self.fail("contiguous, the only map of a whole rule")
            if self.group != (0, self.next - 2):
                self.next -= 1
                self.fail(f"parentheses around the whole rule before @{CONTIGUOUS}")
            if self.peek == ("sign", "("):
                construct(PositionMap, CONTIGUOUS, *self.arguments({}))
            rule = rule.mapped(CONTIGUOUS)
        if self.peek != _END:
            self.fail("| or & or the end")
        return rule

    def union(self) -> Rule:
        rule = self.intersection()
        while self.take("|"):
            rule = rule | self.intersection()
        return rule

    def intersection(self) -> Rule:
        rule = self.atom()
        while self.take("&"):
            rule = rule & self.atom()
        return rule

    def atom(self) -> Rule:
        begin = self.next
        if self.take("("):
            self.depth += 1
            if self.depth > _DEEPEST:
                self.fail(f"at most {_DEEPEST} parentheses inside each other")
            rule = self.union()
            self.need(")")
            self.depth -= 1
            self.group = (begin, self.next)
            return rule
        name = self.name("an operator")
        if self.peek != ("sign", "("):
            find_op(name)  # a wrong name is a better thing to report than a missing parenthesis
            self.fail("'(' after an operator")
        op = build_op(name, *self.arguments(find_op(name).nested))
        position_map: PositionMap = KEEP
        if self.take("@"):
            position_map = self.position_map()
        label = ""
        if self.peek == ("name", "as"):
            self.next += 1
            label = self.name("a name for the store")
        return Rule(Term(op, position_map, label))

    def position_map(self) -> PositionMap:
        name = self.name("a position map")
        if name == CONTIGUOUS:
            raise HeadforceError(
                "HF-RULE-FORM",
                found=f"@{CONTIGUOUS} on one operator in {self.text!r}",
                needed=f"it on the whole rule, in parentheses: (...)@{CONTIGUOUS}",
            )
        if name not in MAPS:
            raise HeadforceError(
                "HF-OP-UNKNOWN",
                found=f"position map {name!r}{nearest(name, [*MAPS, CONTIGUOUS])}",
                needed="one of " + ", ".join([*MAPS, CONTIGUOUS]),
            )
        args: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        if self.peek == ("sign", "("):
            args = self.arguments({})
        position_map: PositionMap = construct(MAPS[name], name, *args)
        return position_map

    def arguments(self, nested: dict[str, type]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.need("(")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        while not self.take(")"):
            if args or kwargs:
                self.need(",")
            key = ""
            if self.peek[0] == "name" and self.tokens[self.next + 1 : self.next + 2] and self._ahead() == "=":
                key = self.name("an argument")
                self.need("=")
                if key in kwargs:
                    self.fail(f"each argument once; {key} is given twice")
            elif kwargs:
                self.fail("name=value after a named argument")
            value = self.value(nested)
            if key:
                kwargs[key] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _ahead(self) -> str:
        return self.tokens[self.next + 1][1]

    def value(self, nested: dict[str, type]) -> Any:
        kind, text = self.peek
        if kind not in ("number", "string", "name"):
            self.fail("a value")
        self.next += 1
        if kind == "number":
            if len(text) > _LONGEST:
                self.next -= 1
                self.fail(f"a number of at most {_LONGEST} characters")
            return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
        if kind == "name" and self.peek == ("sign", "("):
            if text not in nested:
                self.next -= 1
                self.fail("one of " + ", ".join(f"{name}(...)" for name in nested) if nested else "a plain value")
            return construct(nested[text], text, *self.arguments({}))
        return text
