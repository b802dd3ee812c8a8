"""Policies: layer x head -> rule, with named classes, a default, whole layers and a warm-up."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any

from ..errors import HeadforceError, nearest
from .classify import Classify
from .op import Composable
from .ops.native import UNMODIFIED
from .rule import Rule
from .switch import KEEP_ALL, Answer

if TYPE_CHECKING:
    from os import PathLike

    from .bound import BoundPolicy


@dataclass(frozen=True)
class Warmup:
    """`rule` for every head during the first `chunks` chunks of a stream."""

    chunks: int
    rule: Rule = UNMODIFIED

    def __post_init__(self) -> None:
        _need_count("warmup.chunks", self.chunks)
        object.__setattr__(self, "rule", _rule("warmup.rule", self.rule))
        if self.rule.stateful:
            raise HeadforceError(
                "HF-POLICY-VALUE", site="warmup.rule", found=str(self.rule), needed="a rule without stateful operators"
            )


@dataclass(frozen=True, eq=False)
class Policy:
    """What every head of a model remembers.

    Args:
        classes: name -> rule, or operator.
        default: the class of every head not named below; without it such heads read what the model itself reads.
        heads: layer -> class -> heads. Goes before `layers`.
        layers: layer -> class, for whole layers. Goes before `default`.
        warmup: another rule for the first chunks of a stream.
        horizon: most frames of a stream; needed when a rule is unbounded without it.
        position_range: the largest distance, in frames, at which a query may see any frame.
        on_switch: class -> what its heads do with their memory when the prompt switches; others keep it.
        classify: how heads are assigned to classes while a stream runs; in place of `heads`, `layers` and `default`.
        made_for: (layers, heads) of the only models it is for. Labels are of one model: a larger one has heads of which
            they say nothing.

    Policies compare and hash by meaning: class names and spelling do not count, the rule of every head does.
    Raises HF-POLICY-VALUE for a class that does not exist or a head that is named twice.
    """

    classes: Mapping[str, Rule]
    default: str | None = None
    heads: Mapping[int, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    layers: Mapping[int, str] = field(default_factory=dict)
    warmup: Warmup | None = None
    horizon: int | None = None
    position_range: int | None = None
    on_switch: Mapping[str, Answer] = field(default_factory=dict)
    classify: Classify | None = None
    made_for: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for key in ("classes", "heads", "layers", "on_switch"):
            _need_mapping(key, getattr(self, key))
        for name in self.classes:
            if not isinstance(name, str):
                raise HeadforceError("HF-POLICY-VALUE", site="classes", found=repr(name), needed="a name")
        rules = {name: _rule(f"classes.{name}", rule) for name, rule in self.classes.items()}
        if any(rules[name] is not rule for name, rule in self.classes.items()):
            object.__setattr__(self, "classes", rules)
        for rule in rules.values():
            rule.checked()
        if self.warmup is not None and not isinstance(self.warmup, Warmup):
            raise HeadforceError(
                "HF-POLICY-VALUE",
                site="warmup",
                found=repr(self.warmup),
                needed="a Warmup, such as Warmup(2), or None",
            )
        if self.default is not None:
            self._need_class("default", self.default)
        for layer, name in self.layers.items():
            _need_index("layers", layer)
            self._need_class(f"layers.{layer}", name)
        for layer, by_class in self.heads.items():
            _need_index("heads", layer)
            _need_mapping(f"heads.{layer}", by_class)
            seen: dict[int, str] = {}
            for name, heads in by_class.items():
                place = f"heads.{layer}.{name}"
                self._need_class(place, name)
                if isinstance(heads, str) or not isinstance(heads, Collection):
                    raise HeadforceError(
                        "HF-POLICY-VALUE", site=place, found=repr(heads), needed="a tuple of heads, such as (0, 3)"
                    )
                for head in heads:
                    _need_index(place, head)
                    if head in seen:
                        raise HeadforceError(
                            "HF-POLICY-VALUE",
                            site=place,
                            found=f"head {head} a second time (it is in {seen[head]!r} already)",
                            needed="every head of a layer in one class, once",
                        )
                    seen[head] = name
        for name, answer in self.on_switch.items():
            self._need_class("on_switch", name)
            if not isinstance(answer, Answer):
                raise HeadforceError(
                    "HF-POLICY-VALUE",
                    site=f"on_switch.{name}",
                    found=repr(answer),
                    needed="an Answer, such as Flush(2)",
                )
        if self.classify is not None and not isinstance(self.classify, Classify):
            raise HeadforceError(
                "HF-POLICY-VALUE", site="classify", found=repr(self.classify), needed="a Classify, or None"
            )
        if self.classify is not None:
            self._check_classify(self.classify)
        for name in ("horizon", "position_range"):
            if getattr(self, name) is not None:
                _need_count(name, getattr(self, name))
        if self.made_for is not None:
            _need_shape(self.made_for)

    def _check_classify(self, classify: Classify) -> None:
        for place in ("first", "middle", "without"):
            self._need_class(f"classify.{place}", getattr(classify, place))
        named = [key for key in ("heads", "layers", "default") if getattr(self, key)]
        if named:
            raise HeadforceError(
                "HF-POLICY-VALUE", site=named[0], found=f"{named[0]} beside classify", needed="one or the other"
            )
        if self.warmup is None or self.warmup.chunks <= classify.chunk or self.warmup.rule.by_query:
            raise HeadforceError(
                "HF-POLICY-VALUE",
                site="classify.chunk",
                found=f"chunk {classify.chunk} with warmup {self.warmup}",
                needed="a chunk of the warm-up, whose rule reads the same for all query frames of a chunk",
            )
        stateful = [name for name in classify.classes if self.classes[name].stateful]
        if stateful:
            raise HeadforceError(
                "HF-POLICY-VALUE",
                site=f"classes.{stateful[0]}",
                found=f"{self.classes[stateful[0]]}, which has state, for heads classified while a stream runs",
                needed="a rule of frame numbers alone",
            )

    def _need_class(self, place: str, name: str) -> None:
        known = isinstance(name, str) and name in self.classes
        if not known:
            close = nearest(name, self.classes) if isinstance(name, str) else ""
            raise HeadforceError(
                "HF-POLICY-VALUE",
                site=place,
                found=f"class {name!r}{close}",
                needed="one of the classes: " + (", ".join(self.classes) or "there is none"),
            )

    # --- asking -------------------------------------------------------------------------------------------------

    @cached_property
    def moves(self) -> bool:
        """True when some frame may be read at another position than its own."""
        rules = (*self.classes.values(), *([self.warmup.rule] if self.warmup else []))
        return any(rule.moves for rule in rules) or any(answer.jump for answer in self.on_switch.values())

    def class_of(self, layer: int, head: int) -> str | None:
        """The class of a head; None if it has none and reads what the model itself reads."""
        for name, heads in self.heads.get(layer, {}).items():
            if head in heads:
                return name
        return self.layers.get(layer, self.default)

    def rule_of(self, layer: int, head: int) -> Rule:
        """The rule of a head after the warm-up."""
        name = self.class_of(layer, head)
        return UNMODIFIED if name is None else self.classes[name]

    def classified(self, classes: Sequence[Sequence[str]]) -> Policy:
        """The policy once every head has its class, [layer][head]."""
        by_layer = {
            layer: {name: tuple(h for h, its in enumerate(names) if its == name) for name in dict.fromkeys(names)}
            for layer, names in enumerate(classes)
        }
        return replace(self, classify=None, heads=by_layer)

    def undecided(self) -> Policy:
        """The policy of a stream before its heads are classified: every head holds what any class may come to read."""
        assert self.classify is not None
        # Positions do not matter: until its heads are classified a stream reads what the warm-up says.
        rules = [replace(self.classes[name], contiguous=False) for name in self.classify.classes]
        reading = [rule for rule in rules if rule.reads_chunk] or rules[:1]
        together = reduce(Rule.union, reading)
        answers = {self.on_switch.get(name, KEEP_ALL) for name in self.classify.classes}
        on_switch = {"undecided": answers.pop()} if len(answers) == 1 else {}
        return replace(self, classify=None, classes={"undecided": together}, default="undecided", on_switch=on_switch)

    @property
    def answers_alike(self) -> bool:
        """Whether all classes do the same when the prompt switches."""
        return len({self.on_switch.get(name, KEEP_ALL) for name in self.classes}) == 1

    def parts_of_frame(self, tokens: int) -> int:
        """Into how many parts a store cuts a frame of `tokens` tokens at most."""
        ops = (term.op for rule in self.classes.values() for term in rule.paged)
        return max((op.parts_of_frame(tokens) for op in ops), default=1)

    @property
    def by_layer(self) -> bool:
        """True when layers differ, so that a layer has to be told from another."""
        return bool(self._meaning[1])

    def bind(self, *, layers: int, heads: int, native: Rule | None = None, tokens: int | None = None) -> BoundPolicy:
        """The policy for a model of `layers` x `heads` with `tokens` tokens in a frame, whose own rule is `native`.

        Raises HF-POLICY-SHAPE for a layer or head that the model lacks and for a policy that was made for a model of
        another shape, HF-NATIVE if `native()` is used and not given, HF-UNBOUNDED for a rule that grows without end and
        no `horizon`, HF-SEGMENTS for rules that cut frames into pieces which do not come out even. Heads that are
        classified while a stream runs are bound as a guess.
        """
        from .bound import bind

        policy = self
        if self.classify is not None:
            policy = self.classified(self.classify.guess(layers, heads))
        return bind(policy, layers, heads, native, tokens)

    # --- equality -----------------------------------------------------------------------------------------------

    def _kind(self, name: str | None) -> tuple[Rule, Answer]:
        """The rule of a class, and its answer to a prompt switch."""
        if name is None:
            return UNMODIFIED, KEEP_ALL
        return self.classes[name], self.on_switch.get(name, KEEP_ALL)

    @cached_property
    def _meaning(self) -> tuple[Any, ...]:
        """(default kind, {layer: (its kind, {head: its kind})} where they differ, warm-up, what it is limited to)."""
        default = self._kind(self.default)
        exceptions = []
        for layer in sorted({*self.layers, *self.heads}):
            base = self._kind(self.layers[layer]) if layer in self.layers else default
            kinds = [(h, self._kind(name)) for name, hs in self.heads.get(layer, {}).items() for h in hs]
            heads = [(h, kind) for h, kind in kinds if kind != base]
            if heads or base != default:
                exceptions.append((layer, base, tuple(sorted(heads, key=lambda entry: entry[0]))))
        warmup = (self.warmup.chunks, self.warmup.rule) if self.warmup else None
        limits = (self.horizon, self.position_range, self.made_for)
        if self.classify is not None:
            of_classes = tuple(self._kind(name) for name in self.classify.classes)
            spelling = replace(self.classify, first="first", middle="middle", without="without")
            return default, (("classify", of_classes, spelling),), warmup, limits
        return default, tuple(exceptions), warmup, limits

    def __eq__(self, other: object) -> bool:
        return self._meaning == other._meaning if isinstance(other, Policy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._meaning)

    @property
    def digest(self) -> str:
        """A hash of the meaning that is the same in every process and on every machine (16 hex digits)."""
        default, exceptions, warmup, (horizon, distance, made_for) = self._meaning
        if self.classify is not None:
            ((_, kinds, spelling),) = exceptions
            exceptions = ()
            horizon = (horizon, [_digest(kind) for kind in kinds], repr(spelling))
        text = repr(
            (
                _digest(default),
                [
                    (layer, _digest(base), [(h, _digest(kind)) for h, kind in heads])
                    for layer, base, heads in exceptions
                ],
                (warmup[0], warmup[1].digest) if warmup else None,
                horizon,
                distance,
                *([made_for] if made_for else []),
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # --- files --------------------------------------------------------------------------------------------------

    @staticmethod
    def load(path: str | PathLike[str]) -> Policy:
        """Reads a policy file, YAML or JSON; see docs/policy.md for the format and errors.py for what can go wrong."""
        from .file import load

        return load(path)

    @staticmethod
    def loads(text: str, source: str = "policy") -> Policy:
        """Reads the text of a policy file. `source` is what errors call it."""
        from .file import loads

        return loads(text, source)

    def dumps(self, form: str = "yaml") -> str:
        """The text of a policy file in `yaml` or `json`; `Policy.loads` reads back the same policy."""
        from .file import dumps

        return dumps(self, form)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a policy file: JSON if the name ends in .json, else YAML."""
        from .file import save

        save(self, path)


def _digest(kind: tuple[Rule, Answer]) -> str:
    rule, answer = kind
    return rule.digest if answer == KEEP_ALL else f"{rule.digest} {answer}"


def _rule(place: str, value: object) -> Rule:
    """A rule, or an operator, which is the rule of it alone."""
    if isinstance(value, Composable):
        return value.as_rule()
    raise HeadforceError(
        "HF-POLICY-VALUE",
        site=place,
        found=repr(value),
        needed='a rule: parse_rule("window(1)"), or operators that are joined in Python',
    )


def _need_mapping(place: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise HeadforceError("HF-POLICY-VALUE", site=place, found=repr(value), needed="a mapping, {key: value}")


def _need_count(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise HeadforceError("HF-POLICY-VALUE", site=name, found=repr(value), needed="a whole number of at least 1")


def _need_shape(made_for: object) -> None:
    if not isinstance(made_for, tuple) or len(made_for) != 2:
        raise HeadforceError("HF-POLICY-VALUE", site="made_for", found=repr(made_for), needed="(layers, heads)")
    for name, count in zip(("layers", "heads"), made_for, strict=True):
        _need_count(f"made_for.{name}", count)


def _need_index(place: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise HeadforceError("HF-POLICY-VALUE", site=place, found=repr(value), needed="an index of 0 or more")
