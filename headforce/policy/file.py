"""Policy files: YAML or JSON on the outside, `Policy` on the inside.

The keys are a contract; docs/policy.md describes them. A key that this version does not act on is an error.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
import sys
from collections.abc import Hashable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)

from ..errors import HeadforceError, nearest
from .classify import Classify
from .grammar import parse_answer, parse_rule
from .ops.native import UNMODIFIED
from .policy import Policy, Warmup

VERSION = 1
READABLE = (0, 1)
"""Versions of the format that are read. Version 0 is version 1 without `on_switch`, `classify` and `made_for`."""

FORMS = ("yaml", "json")

_Count = Annotated[StrictInt, Field(ge=1)]
_Index = Annotated[StrictInt, Field(ge=0)]
_Number = Annotated[Any, WithJsonSchema({"type": "number"})]
"""What it may be is said by whom it is for: a union of types would be refused type by type."""


def _layer(key: object) -> object:
    """JSON keys are strings: "12" is layer 12. Other spellings ("012", true, 12.0) would let two keys be one layer."""
    text = str(key) if type(key) in (int, str) else ""
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text):
        raise ValueError(key)
    return int(text)


_Layer = Annotated[int, BeforeValidator(_layer)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Warmup(_Shape):
    """What all heads read in the first chunks."""

    chunks: _Count = Field(description="How many chunks.")
    rule: StrictStr | None = Field(default=None, description="The rule; `native()` if it is left out.")


class _Classify(_Shape):
    """Heads are assigned to classes while a stream runs."""

    chunk: _Count = Field(description="Index of the chunk whose last pass is measured.")
    dummies: _Number = Field(
        default=0.5, description="Heads of the model that get `without`, or a share of them from 0.0 to 1.0."
    )
    first: StrictStr = Field(default="sink", description="Class of heads that attend to the first frames.")
    middle: StrictStr = Field(default="neighbor", description="Class of heads that attend to the frames between.")
    without: StrictStr = Field(default="dummy", description="Class of the dummies.")
    first_frames: _Count = Field(default=1, description="How many of the frames read count as first.")
    queries: _Number = Field(default=0.25, description="Share of the query rows that is measured.")
    seed: _Index = Field(default=0, description="Of the choice of rows.")


class _MadeFor(_Shape):
    """The shape of the only models that the policy is for."""

    layers: _Count = Field(description="How many layers.")
    heads: _Count = Field(description="How many heads a layer.")


class _File(_Shape):
    """What every attention head of a model remembers of past frames."""

    headforce: StrictInt = Field(description="Version of the format.")
    classes: dict[StrictStr, StrictStr] = Field(default_factory=dict, description="Name: rule.")
    default: StrictStr | None = Field(default=None, description="Class of every head that is not named.")
    heads: dict[_Layer, dict[StrictStr, list[_Index]]] = Field(
        default_factory=dict, description="Layer: {class: heads}."
    )
    layers: dict[_Layer, StrictStr] = Field(default_factory=dict, description="Layer: class, for whole layers.")
    warmup: _Warmup | None = Field(default=None, description="Another rule for the first chunks of a stream.")
    horizon: _Count | None = Field(default=None, description="Most frames of a stream.")
    position_range: _Count | None = Field(default=None, description="Largest distance at which a frame may be seen.")
    on_switch: dict[StrictStr, StrictStr] = Field(
        default_factory=dict, description="Class: what it does with its memory when the prompt switches."
    )
    classify: _Classify | None = Field(default=None, description="Heads are classified while a stream runs.")
    made_for: _MadeFor | None = Field(default=None, description="Models of any other shape are refused.")


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring = 2, 60


def load(path: str | PathLike[str]) -> Policy:
    """The policy in the file at `path`. Errors name the file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, TypeError, ValueError) as error:  # ValueError: other bytes than UTF-8, or a NUL in the path
        raise HeadforceError(
            "HF-POLICY-FILE", site=str(path), found=f"a file that cannot be read ({error})", needed="a policy file"
        ) from error
    return loads(text, str(path))


def loads(text: str, source: str = "policy") -> Policy:
    """The policy in `text`, which is YAML or JSON."""
    try:
        return _policy(document(text))
    except HeadforceError as error:
        raise error.at(source) from None


def save(policy: Policy, path: str | PathLike[str]) -> None:
    """Writes the policy: JSON if the name ends in .json, else YAML."""
    Path(path).write_text(dumps(policy, "json" if str(path).endswith(".json") else "yaml"), encoding="utf-8")


def dumps(policy: Policy, form: str = "yaml") -> str:
    """The text of the policy's file in `yaml` or `json`."""
    if form not in FORMS:
        raise HeadforceError("HF-POLICY-VALUE", site="form", found=repr(form), needed=" or ".join(FORMS))
    data = to_dict(policy)
    if form == "json":
        return json.dumps(data, indent=2) + "\n"
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=sys.maxsize, allow_unicode=True))


class _Dumper(yaml.SafeDumper):
    """One key a line, so that policies can be compared line by line; lists of heads in brackets."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Left to itself PyYAML writes some line separators so that it cannot read them back.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
_Dumper.add_representer(str, _text)


def to_dict(policy: Policy) -> dict[str, Any]:
    """The policy with the keys of the file format; what has no value is left out."""
    data: dict[str, Any] = {"headforce": VERSION}
    data["classes"] = {name: str(rule) for name, rule in policy.classes.items()}
    if policy.default is not None:
        data["default"] = policy.default
    if policy.heads:
        data["heads"] = {
            str(layer): {name: list(heads) for name, heads in by_class.items()}
            for layer, by_class in policy.heads.items()
        }
    if policy.layers:
        data["layers"] = {str(layer): name for layer, name in policy.layers.items()}
    if policy.warmup is not None:
        data["warmup"] = {"chunks": policy.warmup.chunks}
        if policy.warmup.rule != UNMODIFIED:
            data["warmup"]["rule"] = str(policy.warmup.rule)
    for key in ("horizon", "position_range"):
        if getattr(policy, key) is not None:
            data[key] = getattr(policy, key)
    if policy.on_switch:
        data["on_switch"] = {name: str(answer) for name, answer in policy.on_switch.items()}
    if policy.classify is not None:
        data["classify"] = asdict(policy.classify)
    if policy.made_for is not None:
        data["made_for"] = dict(zip(("layers", "heads"), policy.made_for, strict=True))
    return data


def document(text: str) -> dict[Any, Any]:
    """The keys of a policy file as they stand, its version checked; HF-POLICY-FILE for any other text."""
    if not isinstance(text, str):
        raise HeadforceError("HF-POLICY-FILE", found=f"a {type(text).__name__}", needed="the text of a policy file")
    # A JSON document is YAML too, but JSON's own reader has the better messages for one that is cut short.
    read = [_read_json, _read_yaml] if text.lstrip().startswith("{") else [_read_yaml]
    data, problem = None, None
    for reader in read:
        try:
            data, problem = reader(text), None
            break
        except _UNREADABLE as error:
            problem = problem or error
    if problem is not None:
        why = " ".join(str(problem).split()) or type(problem).__name__
        raise HeadforceError(
            "HF-POLICY-FILE", found=f"text that is neither YAML nor JSON ({why})", needed="a policy file"
        ) from problem
    if not isinstance(data, dict) or "headforce" not in data:
        kind = {dict: "a file without the key `headforce`", type(None): "a file with nothing in it"}
        raise HeadforceError(
            "HF-POLICY-FILE", found=kind.get(type(data), f"a {type(data).__name__}"), needed="a policy file"
        )
    if type(data["headforce"]) is not int or data["headforce"] not in READABLE:
        raise HeadforceError(
            "HF-POLICY-FILE",
            site="headforce",
            found=f"version {_short.repr(data['headforce'])} of the format",
            needed="version " + " or ".join(map(str, READABLE)) + ", which this headforce reads",
        )
    return data


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _Twice:
        with contextlib.suppress(*_UNREADABLE):
            _read_yaml(text)  # JSON's reader does not say where in the document an object stands
        raise


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


# The readers' own errors, and what they let through for impossible dates, bad tags, huge numbers and deep nesting.
_UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _Twice(HeadforceError):
    """A key that is there twice."""


_INT, _MERGE, _VALUE = (f"tag:yaml.org,2002:{name}" for name in ("int", "merge", "value"))

_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]
"""The keys of a mapping and their values, by the text of the key."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, made to refuse what it would silently read otherwise.

    Of two equal keys it would keep the last, and take 010 for 8, 1_0 for 10 and 1:30 for 90.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._settled: set[int] = set()
        """The ids of the nodes that were looked at. An alias is the very node that it names."""
        self._pairs: dict[int, _Pairs] = {}
        """By the id of a mapping, what is in it once merged."""

    def construct_document(self, node: yaml.Node) -> Any:
        self._settle(node, "")
        return super().construct_document(node)

    def construct_value(self, node: yaml.ScalarNode) -> str:
        """A plain `=`, which is text to us."""
        return str(self.construct_scalar(node))

    def _settle(self, node: yaml.Node, place: str) -> None:
        """Looks at a node and all that is in it, and puts into mappings what they merge. `place`: its key and a dot."""
        if id(node) in self._settled:
            return
        self._settled.add(id(node))
        if node.tag == _INT and isinstance(node, (yaml.ScalarNode, yaml.MappingNode)):
            _check_spelling(self.construct_scalar(node), self.construct_object(node), place.rstrip("."))
        if isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._settle(item, f"{place}{i}.")
        elif isinstance(node, yaml.MappingNode):
            pairs = self._own(node, place)
            _, merged = pairs.pop(_MERGE, (None, None))
            # What a mapping says itself goes before what it merges, and of those the first before the others.
            sources = [] if merged is None else reversed(_mappings(merged, place))
            before = [self._pairs.get(id(source), {}) for source in sources]
            self._pairs[id(node)] = {name: pair for its in (*before, pairs) for name, pair in its.items()}
            node.value = list(self._pairs[id(node)].values())

    def _own(self, node: yaml.MappingNode, place: str) -> _Pairs:
        """What a mapping says itself; HF-POLICY-VALUE for a key that is there twice, and for one that is no scalar."""
        pairs: _Pairs = {}
        seen: set[Hashable] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise HeadforceError(
                    "HF-POLICY-VALUE", site=place.rstrip("."), found=f"a {key.id} as a key", needed="text or a number"
                )
            self._settle(key, f"{place}{key.value}.")
            found = _MERGE if key.tag == _MERGE else self.construct_object(key)
            if not seen.isdisjoint({found, str(found)}):  # 3 and "3" are one layer, and to Python 1 and true one key
                raise _twice(f"{place}{key.value}")
            seen |= {found, str(found)}
            pairs[str(found)] = key, value
            self._settle(value, f"{place}{key.value}.")
        return pairs


_Loader.add_constructor(_VALUE, _Loader.construct_value)


def _mappings(node: yaml.Node, place: str) -> list[yaml.Node]:
    """The mappings that `<<` names."""
    nodes = list(node.value) if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(each, yaml.MappingNode) for each in nodes):
        raise HeadforceError(
            "HF-POLICY-VALUE", site=f"{place}<<", found="what is no mapping", needed="a mapping to merge, or several"
        )
    return nodes


def _check_spelling(text: str, number: int, place: str) -> None:
    """HF-POLICY-VALUE for a whole number that is not written as it is printed: others write 010 and mean ten."""
    if text != str(number):
        raise HeadforceError(
            "HF-POLICY-VALUE",
            site=place,
            found=f"{text:.60}, which YAML takes for the number {_short.repr(number)}",
            needed="a whole number in plain decimal, without zeros in front; text stands in quotes",
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The keys of an object of JSON, which would silently keep the last of two equal ones."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _twice(key)
        found[key] = value
    return found


def _twice(site: str) -> _Twice:
    return _Twice("HF-POLICY-VALUE", site=site, found="the same key twice", needed="it once")


def _policy(data: dict[Any, Any]) -> Policy:
    try:
        shape = _File.model_validate(data)
    except ValidationError as error:
        raise _first(error) from None

    def rule(place: str, text: str) -> Any:
        try:
            return parse_rule(text)
        except HeadforceError as error:
            raise error.at(place) from None

    def answer(name: str, text: str) -> Any:
        try:
            return parse_answer(text)
        except HeadforceError as error:
            raise error.at(f"on_switch.{name}") from None

    warmup = None
    if shape.warmup is not None:
        given = shape.warmup.rule
        warmup = Warmup(shape.warmup.chunks, UNMODIFIED if given is None else rule("warmup.rule", given))
    return Policy(
        classes={name: rule(f"classes.{name}", text) for name, text in shape.classes.items()},
        default=shape.default,
        heads={layer: {n: tuple(hs) for n, hs in by_class.items()} for layer, by_class in shape.heads.items()},
        layers=shape.layers,
        warmup=warmup,
        horizon=shape.horizon,
        position_range=shape.position_range,
        on_switch={name: answer(name, text) for name, text in shape.on_switch.items()},
        classify=None if shape.classify is None else Classify(**shape.classify.model_dump()),
        made_for=None if shape.made_for is None else (shape.made_for.layers, shape.made_for.heads),
    )


def _first(error: ValidationError) -> HeadforceError:
    """The first misfit as a coded error: an unknown key before a wrong value."""
    problems = error.errors()
    unknown = ("extra_forbidden", "invalid_key")
    problem = next((p for p in problems if p["type"] in unknown), problems[0])
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] in unknown:
        key = str(problem["input"] if problem["type"] == "invalid_key" else problem["loc"][-1])
        within = str(problem["loc"][0]) if len(problem["loc"]) > 1 else ""
        shapes: dict[str, type[BaseModel]] = {"warmup": _Warmup, "classify": _Classify, "made_for": _MadeFor}
        known = list(shapes.get(within, _File).model_fields)
        later = nearest(key, known)
        if key in ("preset", "arguments"):
            later = " (`headforce.presets.read_policy` reads files that name a preset)"
        return HeadforceError("HF-POLICY-KEY", site=place, found=f"key {key!r}{later}", needed=", ".join(known))
    if problem["type"] == "missing":
        return HeadforceError("HF-POLICY-VALUE", site=place, found="nothing", needed=f"a value for {place}")
    needed = _NEEDED.get(problem["type"], problem["msg"]).format(**problem.get("ctx", {}))
    return HeadforceError("HF-POLICY-VALUE", site=place, found=_short.repr(problem["input"]), needed=needed)


def schema() -> dict[str, Any]:
    """The JSON schema of policy files, those that name a preset included (docs/policy.schema.json)."""
    form = _File.model_json_schema()
    layer = {"pattern": "^(0|[1-9][0-9]{0,8})$"}
    for key in ("heads", "layers"):
        form["properties"][key]["propertyNames"] = layer
    form["properties"]["headforce"]["enum"] = list(READABLE)
    definitions = form.pop("$defs")
    preset = {
        "type": "object",
        "description": "A published system, and its arguments.",
        "properties": {
            "headforce": form["properties"]["headforce"],
            "preset": {"type": "string", "description": "Its name."},
            "arguments": {"type": "object", "description": "See docs/systems.md; a label file lies beside this file."},
        },
        "required": ["headforce", "preset"],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headforce policy",
        "oneOf": [form, preset],
        "$defs": definitions,
    }


_NEEDED = {
    "value_error": "a layer: an index such as 3",
    "int_type": "a whole number",
    "greater_than_equal": "at least {ge}",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping, key: value",
    "model_type": "a mapping, key: value",
}
"""What pydantic's kinds of misfit ask for, in our words."""
