"""The cases of `attention.py`: plans of real systems as policies, at one chunk of a long stream, and their tensors.

A plan gives every head of one layer a class, and every class a rule. Which frames a rule reads, and where RoPE is to
see them, is asked of the oracle here, not of the planner: peers and checks have to know nothing of plans and tables.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headforce.kernels.reference import READ_FIELDS, RUN_FIELDS
from headforce.lowering.pool import PagePool, PageShape
from headforce.lowering.stream import Stream
from headforce.policy import BoundPolicy, Chunk, HeadRule, Policy, oracle, parse_rule

CHUNK = 3
"""Frames of a chunk."""

DENSE = 21
"""Frames that an unmodified model reads, those of the chunk included."""

NOW = Chunk(index=10, start=30, frames=CHUNK)
"""The chunk that is measured: late enough for every rule to have settled, and for collapse(21) to move frame 0."""


@dataclass(frozen=True)
class Plan:
    """Classes of heads, each with its weight (heads are shared out in this proportion) and its rule.

    `plain` names the plan that reads the same frames without position maps; it is `name` itself if there are none.
    """

    name: str
    plain: str
    weights: dict[str, int]
    rules: dict[str, str]


def _plans(name: str, weights: dict[str, int], rules: dict[str, str]) -> list[Plan]:
    """A plan with its position maps, which are all `collapse`, and before it the same without them."""
    without = {kind: re.sub(r"@\w+\(\d+\)", "", rule) for kind, rule in rules.items()}
    return [Plan(name, name, weights, without), Plan(f"{name}@collapse", name, weights, rules)]


def _sink_and_window(frames: int) -> str:
    """`frames` frames in all: frame 0 seen as if it were 21 frames old, the newest ones, and the chunk."""
    return f"sink(1)@collapse(21) | window({frames - CHUNK - 1})"


PLANS = (
    *_plans("dense", {"all": 1}, {"all": _sink_and_window(21)}),
    # Every frame more than 6 frames old has a shift of its own, and another one for each frame of the query.
    Plan("dense@clamp", "dense", {"all": 1}, {"all": "sink(1)@clamp(6) | window(17)@clamp(6)"}),
    # The sink has one shift for the whole chunk, so that its frames still read as one.
    Plan("dense@contiguous", "dense", {"all": 1}, {"all": "(sink(1) | window(17))@contiguous"}),
    *_plans("4x21+8x6", {"far": 4, "near": 8}, {"far": _sink_and_window(21), "near": _sink_and_window(6)}),
    *_plans("half", {"far": 1, "near": 1}, {"far": _sink_and_window(21), "near": _sink_and_window(6)}),
    # Forcing-KV, with the head counts of its labels for layers 1 to 29: static heads read frame 0 and the newest one;
    # dynamic heads as many tokens more as a frame has, chosen out of the chunk before. One whole frame stands for them.
    *_plans(
        "forcing_kv", {"static": 129, "dynamic": 219}, {"static": _sink_and_window(5), "dynamic": _sink_and_window(6)}
    ),
    # Pyramid Forcing, with the head counts of its labels. Veil heads also read averages over 16 frames, as many tokens
    # as one frame has; one more frame of the window stands for them.
    *_plans(
        "pyramid",
        {"wave": 156, "anchor": 172, "veil": 32},
        {
            "wave": 'sink(1)@collapse(21) | stride(6, phase="query", last=4)@collapse(21) | window(1)',
            "anchor": "sink(3)@collapse(21) | stride(6, phase=0, last=4)@collapse(21) | window(1)",
            "veil": "sink(3)@collapse(21) | window(2)",
        },
    ),
)


def classes(plan: Plan, heads: int) -> dict[str, tuple[int, ...]]:
    """The heads of every class, rising. Classes lie mixed up, as the labels of trained models do."""
    total = sum(plan.weights.values())
    counts = dict.fromkeys(plan.weights, 1)
    while sum(counts.values()) < heads:
        counts[max(counts, key=lambda kind: plan.weights[kind] / total * heads - counts[kind])] += 1
    order = list(range(heads))
    random.Random(0).shuffle(order)
    members: dict[str, tuple[int, ...]] = {}
    for kind, count in counts.items():
        members[kind] = tuple(sorted(order[:count]))
        order = order[count:]
    return members


def policy_of(plan: Plan, heads: int) -> BoundPolicy:
    """The plan as the policy of a model with a single layer."""
    rules = {kind: parse_rule(rule) for kind, rule in plan.rules.items()}
    return Policy(rules, heads={0: classes(plan, heads)}).bind(layers=1, heads=heads)


@dataclass(frozen=True)
class Part:
    """Heads and query frames that read the same frames, the chunk included, as pairs (frame, shift), rising.

    RoPE sees a frame `shift` frames later than it is. Query frames are adjacent and count from the start of the chunk.
    """

    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]

    @property
    def moved(self) -> tuple[tuple[int, int], ...]:
        return tuple(key for key in self.keys if key[1])

    @property
    def still(self) -> tuple[int, ...]:
        """Past frames that are read where they are."""
        return tuple(frame for frame, shift in self.keys if not shift and frame < NOW.start)


def parts_of(policy: BoundPolicy) -> list[Part]:
    """What every head of the layer reads in the measured chunk, in as few parts as there are."""
    members: dict[tuple[tuple[tuple[int, int], ...], ...], list[int]] = {}
    for head, rule in enumerate(policy.rules[0]):
        members.setdefault(tuple(_keys(rule, query) for query in NOW.queries), []).append(head)
    parts: list[Part] = []
    for by_query, heads in members.items():
        begin = 0
        for query in range(1, CHUNK + 1):
            if query == CHUNK or by_query[query] != by_query[begin]:
                parts.append(Part(tuple(heads), tuple(range(begin, query)), by_query[begin]))
                begin = query
    return parts


def _keys(rule: HeadRule, query: int) -> tuple[tuple[int, int], ...]:
    past = oracle.read(rule.rule, None, NOW, query)
    return (*((frame, past[frame] - frame) for frame in sorted(past)), *((frame, 0) for frame in NOW.queries))


def frames_held(parts: list[Part]) -> tuple[int, ...]:
    """The 21 frames of a cache from which every part can read: those that any head reads, and the newest besides."""
    read = {frame for part in parts for frame, _ in part.keys}
    others = [frame for frame in reversed(range(NOW.stop)) if frame not in read]
    held = sorted({*read, *others[: max(0, DENSE - len(read))]})
    if len(held) != DENSE:
        raise ValueError(f"heads read {len(held)} frames between them, and a dense cache holds {DENSE}")
    return tuple(held)


# --- shapes and tensors -----------------------------------------------------------------------------------------------


PEAK = 2.0
"""Standard deviation of the scores."""


@dataclass(frozen=True)
class Shape:
    """One layer of attention, batch 1: `heads` of `dim`, `tokens` rows a frame."""

    name: str
    heads: int
    tokens: int
    dim: int = 128


SHAPES = (
    Shape("1.3B-480p", 12, 1560),
    Shape("14B-480p", 40, 1560),
    Shape("1.3B-1080p", 12, 8160),
    Shape("14B-1080p", 40, 8160),
)
TINY = Shape("tiny", 6, 8, 16)


def dense_pairs(shape: Shape) -> int:
    """Pairs of a query row and a key row of dense attention, over all heads."""
    return shape.heads * CHUNK * shape.tokens * DENSE * shape.tokens


class Layer:
    """The tensors of a shape: the query of a chunk [1, S, H, D], and a cache of 21 frames, the chunk last."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        generator = torch.Generator(device).manual_seed(0)

        def normal(rows: int) -> Tensor:
            size = (1, rows, shape.heads, shape.dim)
            return torch.randn(size, dtype=dtype, device=device, generator=generator)

        self.query = normal(CHUNK * shape.tokens) * PEAK
        self.key, self.value = normal(DENSE * shape.tokens), normal(DENSE * shape.tokens)
        self.scale = shape.dim**-0.5
        # As in Wan: a third of the pairs each for height and width, the rest, in front, for time.
        pairs = shape.dim // 2 - 2 * (shape.dim // 6)
        self.theta = (10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)).to(device)

    @functools.cached_property
    def dense(self) -> Tensor:
        """What dense attention over the cache should give; see `attended`."""
        part = Part(tuple(range(self.shape.heads)), tuple(range(CHUNK)), tuple((frame, 0) for frame in range(DENSE)))
        return attended(self, [part], {frame: frame for frame in range(DENSE)})


class Case:
    """A plan at a shape. `parts` is what heads read; `place` is where a frame is in the cache, counted in frames."""

    def __init__(self, layer: Layer, plan: Plan) -> None:
        self.layer, self.shape, self.plan = layer, layer.shape, plan
        self.policy = policy_of(plan, layer.shape.heads)
        self.parts = parts_of(self.policy)
        self.place = {frame: i for i, frame in enumerate(frames_held(self.parts))}

    @property
    def name(self) -> str:
        return name_of(self.shape, self.plan)

    @functools.cached_property
    def pool(self) -> PagePool:
        """Pages and tables of a stream that has come to the measured chunk; NaN in pages that it does not read."""
        shape = self.shape
        stream = Stream(self.policy)
        for start in range(0, NOW.stop, CHUNK):
            stream.begin(start, CHUNK)
        pool = PagePool(stream, PageShape(1, shape.tokens, shape.dim, shape.dim, self.layer.dtype, self.layer.device))
        pool.update()
        for its_pages in (pool.k, pool.v):
            its_pages.fill_(torch.nan)
        for head in range(shape.heads):
            slots = stream.lane(0, head).slots.slot
            frames = [frame for frame in slots if frame in self.place]
            pages = [int(pool.regions.base[0, 0, head]) + slots[frame] for frame in frames]
            places = [self.place[frame] for frame in frames]
            for its_pages, cache in ((pool.k, self.layer.key), (pool.v, self.layer.value)):
                its_pages[pages] = cache[0, :, head].unflatten(0, (DENSE, shape.tokens))[places]
        return pool

    @functools.cached_property
    def pairs(self) -> int:
        """Pairs of a query row and a key row, over all heads, as the tables have them."""
        reads, runs = self.pool.reads[0].tolist(), self.pool.runs[0].tolist()
        query_rows, first, count = (READ_FIELDS.index(name) for name in ("query_rows", "first_run", "runs"))
        rows = RUN_FIELDS.index("rows")
        return sum(
            read[query_rows] * sum(run[rows] for run in runs[read[first] : read[first] + read[count]]) for read in reads
        )

    @functools.cached_property
    def expected(self) -> Tensor:
        """What every variant but the dense ones should give; see `attended`."""
        return attended(self.layer, self.parts, self.place)

    def rows(self, frames: Iterable[int], cache: Tensor, heads: tuple[int, ...]) -> Tensor:
        """The rows of some frames in the cache, head by head, [h, rows, D], as a copy."""
        places = [self.place[frame] for frame in frames]
        kept = cache[0].unflatten(0, (DENSE, self.shape.tokens))[places][:, :, list(heads)]
        return kept.flatten(0, 1).transpose(0, 1).contiguous()

    def span(self, part: Part) -> slice:
        """The query rows of a part."""
        return slice(part.queries[0] * self.shape.tokens, (part.queries[-1] + 1) * self.shape.tokens)


def name_of(shape: Shape, plan: Plan) -> str:
    return f"{shape.name} {plan.name}"


def attended(layer: Layer, parts: list[Part], place: dict[int, int]) -> Tensor:
    """Softmax attention of every part over its own frames in float32, head by head, [1, S, H, D].

    Keys are turned by complex multiplication. Nothing here is shared with the code that is measured.
    """
    shape = layer.shape
    tokens, result = shape.tokens, torch.empty_like(layer.query, dtype=torch.float32)
    for part in parts:
        shifts = torch.tensor([shift for _, shift in part.keys], dtype=torch.float64, device=layer.device)
        angles = F.pad(shifts[:, None] * layer.theta, (0, shape.dim // 2 - len(layer.theta)))
        factors = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]
        places = [place[frame] for frame, _ in part.keys]
        rows = slice(part.queries[0] * tokens, (part.queries[-1] + 1) * tokens)
        for head in part.heads:
            key, value = (
                cache[0, :, head].unflatten(0, (-1, tokens))[places].float() for cache in (layer.key, layer.value)
            )
            turned = torch.view_as_complex(key.unflatten(-1, (-1, 2)).contiguous()) * factors
            key, value = torch.view_as_real(turned).flatten(-2).flatten(0, 1), value.flatten(0, 1)
            query = layer.query[0, rows, head].float()
            most = max(1, 2**28 // len(key))  # 1 GiB of scores
            blocks = [(block @ key.mT * layer.scale).softmax(-1) @ value for block in query.split(most)]
            result[0, rows, head] = torch.cat(blocks)
    return result


def largest_error(output: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row, |output - expected| / |expected|; NaN if anything is."""
    difference = (output.float() - expected).norm(dim=-1)
    return float((difference / expected.norm(dim=-1)).max())
