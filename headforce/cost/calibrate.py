"""Measuring a machine: the operators of a pass over a grid of sizes, planning, and a compiled miniature."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .. import prepare
from ..lowering.targets import default_target
from ..policy import Policy
from .between import WIDTH
from .machine import Host, Machine, Table
from .miniature import CHUNK, HEAD_DIM, HEADS, TOKENS, Miniature, Played
from .samples import Run, Samples
from .stopwatch import Stopwatch, lower_quartile

PAGE_WRITE = 3 * 512
"""The least numbers of a page write that is measured: three frames of a row of four heads of 64."""

LEAST = 1e-9
"""Seconds that stand for none in a table."""


@dataclass(frozen=True)
class Grid:
    """The sizes at which a machine is measured, see the tables of `Machine`."""

    rows: tuple[int, ...]
    weights: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    ratios: tuple[int, ...]
    numbers: tuple[int, ...]

    @staticmethod
    def of(kind: str, small: bool = False) -> Grid:
        """For a "cpu" or a "cuda" device. A small one takes a third of the time and reaches less far."""
        if kind == "cuda":
            return Grid(
                rows=(3, 64, 1024, 4096, 16384),
                weights=(1 << 16, 1 << 20, 1536**2, 1536 * 8960),
                heads=(1, 4, 12),
                queries=(384, 1536, 4680),
                keys=(384, 4680, 32768),
                ratios=(1, 2, 7),
                numbers=(1 << 14, 1 << 18, 1 << 22, 1 << 25),
            )
        return Grid(
            rows=(3, 24, 144, 864) if small else (3, 24, 144, 864, 2592),
            weights=(96**2, 256**2, 1024**2) if small else (96**2, 256**2, 512**2, 1024**2, 2048**2),
            heads=(1, 8) if small else (1, 4, 12),
            queries=(24, 144, 864),
            keys=(24, 144, 864, 3456),
            ratios=(1, 2, 7),
            numbers=(1 << 12, 1 << 15, 1 << 18) if small else (1 << 11, 1 << 14, 1 << 17, 1 << 20, 1 << 22),
        )


def calibrate(
    device: torch.device,
    dtype: torch.dtype,
    *,
    head_dims: Sequence[int] = (64, 128),
    target: str | None = None,
    inner: str = "eager",
    grid: Grid | None = None,
    watch: Stopwatch | None = None,
    say: Callable[[str], object] = lambda words: None,
) -> Machine:
    """Measures `device`.

    Args:
        head_dims: those that attention is measured with. target: of headforce; by default that of the device.
        inner: "eager", or "inductor" to measure what is fused besides, which compiles for a minute or two.
        grid: sizes. watch: how times are taken. say: is told what is being measured.
    """
    kind = device.type
    grid, watch = grid or Grid.of(kind), watch or Stopwatch(device)
    target = target or default_target(device)
    samples = Samples(device, dtype, target)

    def table(name: str, make: Callable[..., Iterable[Run]], *axes: Sequence[int]) -> Table:
        say(name)
        seconds = [watch(*make(*sizes)) for sizes in itertools.product(*axes)]
        return Table(tuple(tuple(map(float, axis)) for axis in axes), tuple(seconds))

    def fused(name: str, make: Callable[[int], Any]) -> dict[str, Table]:
        found = {"eager": table(name, lambda n: [make(n)], grid.numbers)}
        if inner != "eager":
            found[inner] = table(f"{name}, {inner}", lambda n: [_alone(make(n), inner)], grid.numbers)
        return found

    with torch.no_grad():
        torch.manual_seed(0)
        dense, ragged = {}, {}
        for dim in head_dims:
            shape = grid.heads, grid.queries
            dense[dim] = table(f"attention, {dim}", partial(samples.dense, dim), *shape, grid.keys)
            ragged[dim] = table(f"{target}, {dim}", partial(samples.ragged, dim), *shape, grid.ratios)
        return Machine(
            device=_name(device),
            kind=kind,
            threads=torch.get_num_threads(),
            dtype=str(dtype).removeprefix("torch."),
            torch=torch.__version__,
            target=target,
            inner=inner,
            linear=table("products", samples.linear, grid.rows, grid.weights),
            dense=dense,
            ragged=ragged,
            rest=fused("the rest of a layer", samples.rest),
            activation=fused("activations", samples.activation),
            between=Table((tuple(map(float, grid.numbers)),), tuple(_between(samples, watch, n) for n in grid.numbers)),
            ends=table("the ends of a pass", lambda n: [samples.ends(n)], grid.numbers),
            copy=table("copies", samples.copy, [4 * n for n in grid.numbers]),
            write=table("page writes", samples.write, [max(n, PAGE_WRITE) for n in grid.numbers]),
            turn=table("turned keys", samples.turn, grid.numbers),
            host=_host(samples, watch, inner, say),
        )


def _alone(run: Run, inner: str) -> Run:
    """Compiled for this size and no other."""
    torch._dynamo.reset()
    return torch.compile(run, backend=inner, dynamic=False)


LAYERS = 3
"""Layers whose operators take turns, each with tensors of its own."""


def _between(samples: Samples, watch: Stopwatch, numbers: int) -> float:
    """What a layer of a chunk takes more than its operators by themselves, which find their tensors in a cache."""
    rows = max(1, numbers // WIDTH)

    def operators() -> list[list[Run]]:
        products = [samples.linear(rows, WIDTH * WIDTH * ratio)[:1] for ratio in (1, 1, 1, 1, 1, 1, 4, 4)]
        attention = [samples.dense(WIDTH // 4, 4, rows, keys) for keys in (4 * rows, 16)]
        return [*products, *attention, [samples.rest(numbers)], [samples.activation(4 * numbers)]]

    layers = [operators() for _ in range(LAYERS)]

    def in_turn() -> None:
        for layer in layers:
            for (run,) in layer:
                run()

    # A small difference of large numbers, so more than once.
    found = [watch(in_turn) / LAYERS - sum(watch(*runs) for runs in layers[0]) for _ in range(3)]
    return max(LEAST, statistics.median(found))


def _host(samples: Samples, watch: Stopwatch, inner: str, say: Callable[[str], object]) -> Host:
    say("planning")
    few, cells, rules = (watch(samples.chunk(*sizes)) for sizes in ((1, 1, 2), (1, 30, 12), (16, 30, 12)))
    cell = max(0.0, (cells - few) / 358)
    rule = max(0.0, (rules - cells) / 15)
    say("a compiled miniature")
    one, many = (_Compiled.of(samples, watch, inner, layers) for layers in (1, 5))
    site = (many.surplus - one.surplus) / 4
    ours = watch(*samples.ragged(HEAD_DIM, HEADS, CHUNK * TOKENS, 2)) + watch(*samples.write(PAGE_WRITE))
    its = watch(*samples.dense(HEAD_DIM, HEADS, CHUNK * TOKENS, 2 * CHUNK * TOKENS)) + 2 * watch(*samples.copy(512))
    return Host(
        call=max(0.0, one.surplus - site),
        site=max(0.0, site - ours + its),
        chunk=max(0.0, one.begin - rule - HEADS * cell),
        rule=rule,
        cell=cell,
        launch=watch(*samples.launch()),
    )


@dataclass(frozen=True)
class _Compiled:
    """A compiled miniature.

    `surplus` is how much longer a pass takes than an eager one, `begin` the first pass of a chunk than the others.
    """

    surplus: float
    begin: float

    @staticmethod
    def of(samples: Samples, watch: Stopwatch, inner: str, layers: int) -> _Compiled:
        policy = Policy.loads('{headforce: 1, classes: {near: "window(1)"}, default: near}')
        model = Miniature(layers, samples.device, samples.dtype).eval()
        eager = watch(Played(model))
        torch._dynamo.reset()
        with prepare(model, policy) as session:
            session.compile(blocks="blocks", inner=inner, target=samples.target)
            played = Played(model)
            compiled = watch(played)
            begin = lower_quartile([watch.once(played.begin) for _ in range(20)])
        torch._dynamo.reset()
        return _Compiled(compiled - eager, begin - compiled)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"
