"""The times of a machine: a few small tables that `headforce calibrate` measures, in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import HeadforceError
from ..whole_file import write_whole

FORMAT, VERSION = "headforce machine", 1


@dataclass(frozen=True)
class Table:
    """Seconds over a grid of sizes.

    Attributes:
        axes: for every dim of the grid its sizes, rising. seconds: in the order of the grid, the last dim fastest.
    """

    axes: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        count = math.prod(len(axis) for axis in self.axes)
        rising = all(a < b for axis in self.axes for a, b in pairwise(axis))
        if count != len(self.seconds) or not count or not rising:
            raise ValueError(f"{len(self.seconds)} times for a grid of {count}")
        positive = all(0 < value < math.inf for value in (*self.seconds, *(v for axis in self.axes for v in axis)))
        if not positive:
            raise ValueError("a time or a size that is not positive")

    def at(self, *sizes: float) -> float:
        """The seconds for these sizes; 0 if one of them is 0.

        Between points, times are interpolated as powers of the sizes. Past the largest size they grow in proportion
        to it; below the smallest they stay as they are, since what is left is the launch.
        """
        if not all(sizes):
            return 0.0
        return math.exp(self._at(sizes, 0, 0))

    def _at(self, sizes: Sequence[float], dim: int, first: int) -> float:
        if dim == len(self.axes):
            return math.log(self.seconds[first])
        axis, size = self.axes[dim], sizes[dim]
        stride = math.prod(len(other) for other in self.axes[dim + 1 :])
        upper = next((i for i, point in enumerate(axis) if point >= size), len(axis))
        if upper == 0:
            return self._at(sizes, dim + 1, first)
        last = self._at(sizes, dim + 1, first + (upper - 1) * stride)
        if upper == len(axis):
            return last + math.log(size / axis[-1])
        share = math.log(size / axis[upper - 1]) / math.log(axis[upper] / axis[upper - 1])
        return last + share * (self._at(sizes, dim + 1, first + upper * stride) - last)


@dataclass(frozen=True)
class Host:
    """What the host does besides launching the model's own operators, in seconds.

    Attributes:
        call, site: of a compiled pass, once and for every layer.
        chunk, rule, cell: of a chunk, once, for every distinct rule that is planned and for every head of every layer.
        launch: of the operator of headforce when it has nothing to compute.
    """

    call: float
    site: float
    chunk: float
    rule: float
    cell: float
    launch: float


@dataclass(frozen=True)
class Machine:
    """One device as it was measured with one dtype.

    Attributes:
        device: its name. kind: "cpu" or "cuda". threads: of torch. dtype: of weights and caches. torch: its version.
        target, inner: of headforce, with which sites and passes were measured.
        linear: (rows, numbers in the weight) -> a matrix product whose weight is not in a cache.
        dense: head dim -> (heads, rows, keys) -> `scaled_dot_product_attention`.
        ragged: head dim -> (heads, rows, keys over rows) -> the operator of headforce, whose heads all read the same.
        rest: numbers in the chunk's tokens -> all else of a layer but for the activation of its feed-forward network.
        activation: numbers -> that.
        between: numbers in the chunk's tokens -> what a layer takes more than its operators, each by itself.
        ends: numbers in the chunk's tokens -> what comes before and after the layers, products apart.
        copy: bytes read and written -> a copy. write: numbers in K and V of a chunk -> the page write of a layer.
        turn: numbers -> turning keys to another position.
    """

    device: str
    kind: str
    threads: int
    dtype: str
    torch: str
    target: str
    inner: str
    linear: Table
    dense: Mapping[int, Table]
    ragged: Mapping[int, Table]
    rest: Mapping[str, Table]
    activation: Mapping[str, Table]
    between: Table
    ends: Table
    copy: Table
    write: Table
    turn: Table
    host: Host

    def __post_init__(self) -> None:
        dims = {2: [self.linear], 3: [*self.dense.values(), *self.ragged.values()]}
        dims[1] = [*self.rest.values(), *self.activation.values(), self.between]
        dims[1] += [self.ends, self.copy, self.write, self.turn]
        if any(len(table.axes) != dim for dim, tables in dims.items() for table in tables):
            raise ValueError("a table of other dims")
        compilers = {"eager", self.inner}
        if not self.dense or not self.ragged or not compilers <= self.rest.keys() & self.activation.keys():
            raise ValueError("a table that is missing")

    # --- files ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the file in one step. Raises OSError."""
        data = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_whole(path, json.dumps(data, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Machine:
        """Reads a file. HF-MACHINE-FILE if it is not there, cut short, or something else."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise _refused(path, error.strerror or str(error)) from error
        except ValueError as error:
            raise _refused(path, f"no JSON ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise _refused(path, "a file of another kind")
        if data.get("version") != VERSION:
            raise _refused(path, f"version {data.get('version')!r}", f"version {VERSION}")
        try:
            return Machine._of(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _refused(path, f"a file that is not whole ({type(error).__name__}: {error})") from error

    @staticmethod
    def _of(data: Mapping[str, Any]) -> Machine:
        given = {name: data[name] for name in ("device", "kind", "threads", "dtype", "torch", "target", "inner")}
        given |= {name: _table(data[name]) for name in ("linear", "between", "ends", "copy", "write", "turn")}
        given |= {name: {int(k): _table(v) for k, v in data[name].items()} for name in ("dense", "ragged")}
        given |= {name: {k: _table(v) for k, v in data[name].items()} for name in ("rest", "activation")}
        if not all(isinstance(given[name], str) for name in ("device", "kind", "dtype", "torch", "target", "inner")):
            raise ValueError("a name that is none")
        host = {name: float(data["host"][name]) for name in ("call", "site", "chunk", "rule", "cell", "launch")}
        return Machine(**given, host=Host(**host))


def _table(data: Mapping[str, Any]) -> Table:
    axes = tuple(tuple(map(float, axis)) for axis in data["axes"])
    return Table(axes, tuple(map(float, data["seconds"])))


def _refused(path: Path, found: str, needed: str = "a file that `headforce calibrate` wrote") -> HeadforceError:
    return HeadforceError("HF-MACHINE-FILE", site=str(path), found=found, needed=needed)
