"""Which heads are what: label files of published systems, read and written.

    Labels.load("forcingkv_heads_selfforcing.json")     Forcing-KV: JSON, classes `static` and `dynamic`
    Labels.load("best_labels.csv")                      Pyramid Forcing: CSV, classes `wave`, `anchor` and `veil`
    Labels.load("headgroups.json")                      Dummy Forcing: JSON, classes `sink`, `neighbor` and `dummy`
    Labels.load("labels.json")                          ours: {"classes": {LAYER: {CLASS: [heads]}}}

Everything that is wrong with a file is HF-LABELS with the layer it is about.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import HeadforceError

Heads = dict[str, tuple[int, ...]]

FORCING_KV = {
    "static": ("static_head", "static_heads", "local_head", "local_heads", "spatial_head", "spatial_heads"),
    "dynamic": ("dynamic_head", "dynamic_heads", "temporal_head", "temporal_heads"),
}
"""Classes of Forcing-KV, and the keys under which files have them."""

PYRAMID = {-1: "wave", 1: "anchor", 2: "veil"}
"""Classes of Pyramid Forcing, by the numbers of its tables."""

DUMMY = {"sink": "headgroup_first", "neighbor": "headgroup_mid", "dummy": "headgroup_last"}
"""Classes of Dummy Forcing, and the keys under which its caches have the heads of a layer."""


@dataclass(frozen=True)
class Labels:
    """`layers[l]` has the class of every head of layer l, in order; all layers have as many heads."""

    layers: tuple[tuple[str, ...], ...]

    @property
    def heads(self) -> int:
        return len(self.layers[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads) of the model whose heads they are: `made_for` of a policy."""
        return len(self.layers), self.heads

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that occur, in the order in which they do."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer))

    def counts(self) -> dict[str, int]:
        """How many heads of the model are of each class."""
        return {name: sum(layer.count(name) for layer in self.layers) for name in self.classes}

    def of(self, layer: int) -> Heads:
        """The heads of each class of a layer."""
        names = self.layers[layer]
        return {n: tuple(h for h, name in enumerate(names) if name == n) for n in dict.fromkeys(names)}

    def heads_besides(self, default: str) -> dict[int, Heads]:
        """`heads` of a policy whose default class is `default`."""
        by_layer = {i: {n: hs for n, hs in self.of(i).items() if n != default} for i in range(len(self.layers))}
        return {layer: classes for layer, classes in by_layer.items() if classes}

    # --- reading ------------------------------------------------------------------------------------------------

    @staticmethod
    def load(path: str | PathLike[str], layers: int | None = None) -> Labels:
        """The labels in a file of any of the four kinds. `layers`: of the model, where the file may name fewer."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, TypeError, ValueError) as error:  # ValueError: other bytes than UTF-8, or a NUL in the path
            raise _wrong(f"a file that cannot be read ({error})", "a label file").at(str(path)) from error
        try:
            if str(path).endswith(".csv"):
                return Labels.from_pyramid(text)
            data = json.loads(text)
            if isinstance(data, dict) and "classes" in data:
                return Labels.from_classes(data["classes"])
            if isinstance(data, list) and data and isinstance(data[0], dict) and set(DUMMY.values()) & data[0].keys():
                return Labels.from_dummy_forcing(data)
            return Labels.from_forcing_kv(data, layers)
        except json.JSONDecodeError as error:
            raise _wrong(f"text that is not JSON ({error})", "a label file").at(str(path)) from error
        except HeadforceError as error:
            raise error.at(str(path)) from None

    @staticmethod
    def from_classes(classes: Mapping[Any, Mapping[str, Sequence[int]]]) -> Labels:
        """Labels from {layer: {class: heads}}, every layer from 0 on, every head of a layer once."""
        if not isinstance(classes, Mapping) or not classes:
            raise _wrong(f"{type(classes).__name__} {classes!r:.40}", "{layer: {class: [heads]}}")
        by_layer = {_index("layers", key): value for key, value in classes.items()}
        missing = sorted(set(range(max(by_layer) + 1)) - by_layer.keys())
        if missing:
            raise _wrong(f"no layer {missing[0]}", f"every layer from 0 to {max(by_layer)}")
        return _checked({layer: _heads(layer, of_layer) for layer, of_layer in by_layer.items()})

    @staticmethod
    def from_forcing_kv(data: Any, layers: int | None = None) -> Labels:
        """Labels from the JSON of Forcing-KV: a file with `layers`, a list of layers, or layers by number.

        A layer that is not named is `dynamic` as a whole; how many layers there are says the file (`num_layers`) or
        `layers`.
        """
        said = {
            key: _index(key, data[key]) for key in ("num_layers", "num_heads") if isinstance(data, dict) and key in data
        }
        total, heads = layers or said.get("num_layers"), said.get("num_heads")
        items = data["layers"] if isinstance(data, dict) and "layers" in data else data
        if isinstance(items, dict):
            items = [{"layer_idx": key, **value} for key, value in items.items() if isinstance(value, dict)]
        if not isinstance(items, list) or not items:
            raise _wrong(f"{type(items).__name__} {items!r:.40}", "a list of layers")
        found: dict[int, Heads] = {}
        for item in items:
            if not isinstance(item, dict) or "layer_idx" not in item:
                raise _wrong(f"{item!r:.60}", "an object with layer_idx")
            layer = _index("layer_idx", item["layer_idx"])
            if layer in found:
                raise _wrong("the same layer twice", "it once").at(f"layer {layer}")
            keys = {name: next((k for k in aliases if k in item), None) for name, aliases in FORCING_KV.items()}
            lacks = [name for name, key in keys.items() if key is None]
            if lacks:
                raise _wrong(f"no {lacks[0]} heads", " or ".join(FORCING_KV[lacks[0]])).at(f"layer {layer}")
            found[layer] = _heads(layer, {name: item[str(key)] for name, key in keys.items()})
        width = heads or _width(found)
        for layer in range(total or max(found) + 1):
            found.setdefault(layer, {"dynamic": tuple(range(width))})
        return _checked(found, width, total)

    @staticmethod
    def from_dummy_forcing(layers: Sequence[Mapping[str, Any]]) -> Labels:
        """Labels from what Dummy Forcing leaves in its caches: for every layer its three lists of heads.

        `layers` may be the caches themselves, once the heads are classified; whatever else they hold is passed over. A
        list may be empty.
        """
        if not isinstance(layers, Sequence) or not layers:
            raise _wrong(f"{type(layers).__name__} {layers!r:.40}", "a list with an item for every layer")
        found: dict[int, Heads] = {}
        for layer, groups in enumerate(layers):
            lacks = [key for key in DUMMY.values() if not isinstance(groups, Mapping) or groups.get(key) is None]
            if lacks:
                raise _wrong(f"no {lacks[0]}", ", ".join(DUMMY.values())).at(f"layer {layer}")
            found[layer] = _heads(layer, {name: groups[key] for name, key in DUMMY.items()})
        return _checked(found)

    @staticmethod
    def from_pyramid(text: str) -> Labels:
        """Labels from the CSV of Pyramid Forcing: a row for each layer, a number for each head, no header."""
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        layers = []
        for layer, row in enumerate(rows):
            names = []
            for head, cell in enumerate(row):
                try:
                    names.append(PYRAMID[int(cell)])
                except (KeyError, ValueError):
                    known = ", ".join(f"{code} ({name})" for code, name in PYRAMID.items())
                    raise _wrong(repr(cell), known).at(f"layer {layer}, head {head}") from None
            layers.append(tuple(names))
        return _even(layers)

    # --- writing ------------------------------------------------------------------------------------------------

    def to_classes(self) -> dict[str, Any]:
        """Our own file, which has every class by its name."""
        return {"classes": {str(i): {n: list(hs) for n, hs in self.of(i).items()} for i in range(len(self.layers))}}

    def to_forcing_kv(self) -> dict[str, Any]:
        """The file of Forcing-KV; HF-LABELS for other classes than `static` and `dynamic`."""
        self._need(FORCING_KV)
        layers = [
            {"layer_idx": i, **{FORCING_KV[n][0]: list(self.of(i).get(n, ())) for n in FORCING_KV}}
            for i in range(len(self.layers))
        ]
        return {"num_layers": len(self.layers), "num_heads": self.heads, "layers": layers}

    def to_dummy_forcing(self) -> list[dict[str, list[int]]]:
        """The lists of Dummy Forcing; HF-LABELS for other classes than `sink`, `neighbor` and `dummy`."""
        self._need(DUMMY)
        of_layers = (self.of(layer) for layer in range(len(self.layers)))
        return [{key: list(heads.get(name, ())) for name, key in DUMMY.items()} for heads in of_layers]

    def to_pyramid(self) -> str:
        """The table of Pyramid Forcing; HF-LABELS for other classes than `wave`, `anchor` and `veil`."""
        codes = {name: str(code) for code, name in PYRAMID.items()}
        self._need(codes)
        return "".join(",".join(codes[name] for name in layer) + "\n" for layer in self.layers)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a file that `load` reads: Pyramid's if the name ends in .csv, else our own."""
        text = self.to_pyramid() if str(path).endswith(".csv") else json.dumps(self.to_classes(), indent=1) + "\n"
        Path(path).write_text(text, encoding="utf-8")

    def _need(self, known: Iterable[str]) -> None:
        other = set(self.classes) - set(known)
        if other:
            raise _wrong(f"class {sorted(other)[0]!r}", " and ".join(known))


def need_classes(labels: Labels | str | PathLike[str], classes: Sequence[str], default: str) -> Labels:
    """The labels, read if they are a path; HF-LABELS for a class that is not among `classes`."""
    found = labels if isinstance(labels, Labels) else Labels.load(labels)
    other = sorted(set(found.classes) - set(classes))
    if other:
        raise _wrong(f"class {other[0]!r}", f"{', '.join(classes)} (heads that are not named are {default})")
    return found


DIGITS = 4
"""Of a layer or head, at most: layers that a file leaves out are filled in."""


def _wrong(found: str, needed: str) -> HeadforceError:
    return HeadforceError("HF-LABELS", found=found, needed=needed)


def _index(place: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or len(text) > DIGITS:
        raise _wrong(f"{value!r:.40}", f"a whole number from 0 to {10**DIGITS - 1}").at(place)
    return int(text)


def _heads(layer: int, classes: Mapping[str, Any]) -> Heads:
    place = f"layer {layer}"
    if not isinstance(classes, Mapping):
        raise _wrong(f"{classes!r:.40}", "{class: [heads]}").at(place)
    found = {}
    for name, heads in classes.items():
        if not isinstance(heads, Sequence) or isinstance(heads, str):
            raise _wrong(f"{heads!r:.40}", "a list of heads").at(f"{place}, {name}")
        found[name] = tuple(_index(f"{place}, {name}", head) for head in heads)
    return found


def _width(found: Mapping[int, Heads]) -> int:
    """As many heads as the highest that is named."""
    return 1 + max((h for classes in found.values() for heads in classes.values() for h in heads), default=-1)


def _checked(found: Mapping[int, Heads], width: int | None = None, total: int | None = None) -> Labels:
    """Every head of every layer in one class, once."""
    width = width or _width(found)
    if total is not None and max(found) >= total:
        raise _wrong(f"layer {max(found)}", f"a layer from 0 to {total - 1}")
    layers = []
    for layer in sorted(found):
        names: dict[int, str] = {}
        for name, heads in found[layer].items():
            for head in heads:
                if head in names:
                    raise _wrong(f"head {head} a second time (it is {names[head]} already)", "every head once").at(
                        f"layer {layer}, {name}"
                    )
                if head >= width:
                    raise _wrong(f"head {head}", f"a head from 0 to {width - 1}").at(f"layer {layer}, {name}")
                names[head] = name
        missing = sorted(set(range(width)) - names.keys())
        if missing:
            raise _wrong(f"no class for head {missing[0]}", f"every head from 0 to {width - 1}").at(f"layer {layer}")
        layers.append(tuple(names[head] for head in range(width)))
    return _even(layers)


def _even(layers: Sequence[tuple[str, ...]]) -> Labels:
    if not layers or not layers[0]:
        raise _wrong("no heads", "at least one layer and one head")
    for i, layer in enumerate(layers):
        if len(layer) != len(layers[0]):
            raise _wrong(f"{len(layer)} heads", f"{len(layers[0])}, as layer 0 has").at(f"layer {i}")
    return Labels(tuple(layers))
