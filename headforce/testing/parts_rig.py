"""A rig for stores that keep parts of frames: parts are made by the program, and here as the operator defines them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.rotation import INTERLEAVED
from ..lowering.plan import Cell
from ..lowering.state.decider import decider
from ..lowering.state.making import make_parts
from ..lowering.state.turning import Turning
from ..lowering.stream import Decider, Event
from ..lowering.verify import check_plan, check_tables
from ..policy import Answer, FrameSet, Op, Part, Policy, Rule, Warmup, parse_rule
from ..policy.parts import Content
from .rig import DOUBLE, Rig, turned

HEIGHT, WIDTH, TIME, SPACE = 4, 6, 2, 2
"""The grid of a frame, and the pairs of a key that turn with time and with the place in the frame."""
TOKENS = HEIGHT * WIDTH


class PartsRig(Rig):
    """A rig whose frames are grids of tokens, and whose rule may have stores with pages of their own.

    Args:
        policy: a policy, or a rule for all heads; `others` names heads that have another one, `b`, instead.
        known: whether it is known how keys turn with their place in the frame.
    """

    def __init__(
        self,
        policy: Policy | Rule | str,
        *,
        layers: int = 2,
        heads: int = 3,
        warmup: Warmup | None = None,
        known: bool = True,
        others: Mapping[int, Mapping[str, tuple[int, ...]]] | None = None,
        on_switch: Mapping[str, Answer] | None = None,
        target: str = "sdpa",
        style: str = INTERLEAVED,
        dtype: torch.dtype = DOUBLE,
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        if not isinstance(policy, Policy):
            rule = parse_rule(policy) if isinstance(policy, str) else policy
            rules = {"a": rule, "b": parse_rule("sink(1) | window(2)")}
            policy = Policy(
                rules, default="a", heads=others or {}, warmup=warmup, horizon=400, on_switch=on_switch or {}
            )
        shape: dict[str, Any] = {"head_dim": 2 * (TIME + SPACE), "pairs": TIME, "value_dim": 3, "tokens": TOKENS}
        given: dict[str, Any] = {"style": style, "dtype": dtype, "batch": batch, "seed": seed}
        super().__init__(policy.bind(layers=layers, heads=heads, tokens=TOKENS), target, **shape, **given)
        places = torch.zeros(TOKENS, TIME + SPACE, dtype=DOUBLE)
        places[:, TIME] = 0.3 * (torch.arange(TOKENS) // WIDTH)
        places[:, TIME + 1] = 0.2 * (torch.arange(TOKENS) % WIDTH)
        self.places = places
        self.made: dict[tuple[Cell, str, Content], tuple[Tensor, Tensor, int]] = {}
        self.turning = Turning(self.theta, 0, self.style, *((places, (HEIGHT, WIDTH)) if known else ()))

    def begin(self, start: int, frames: int, decide: Decider | None = None) -> Event:
        event = self.stream.begin(start, frames, decide or decider(self.pool, self.turning))
        makings = list(self.stream.making)
        make_parts(self.pool, self.turning)
        for making in makings:
            for part in making.new:
                for cell in self.stream.cells(self.stream.lanes[making.lane]):
                    self.made[cell, making.term.store, part.content] = self._made(cell, making.term.op, part)
        self.pool.update()
        check_plan(self.stream)
        check_tables(self.pool)
        return event

    def switch(self, answer: Answer | None = None) -> int:
        """The prompt switches."""
        return self.stream.switch(decider(self.pool, self.turning), answer)

    def check(self, start: int, frames: int) -> None:
        """One pass; what every layer computes is what the oracle and the plain definitions say."""
        for layer, (query, out) in enumerate(self.run(start, frames)):
            tolerance = 1e-9 if self.dtype == DOUBLE else 3e-5
            torch.testing.assert_close(out.to(DOUBLE), self.expected(layer, query), rtol=0, atol=tolerance)

    def selected(self, store: str = "select", layer: int = 0, head: int = 0, row: int = 0) -> list[int]:
        """What a store of one head holds."""
        return list(self.stream.lane(layer, head, row).held.get(store, FrameSet()))

    def raw(self, cell: Cell, frame: int, token: int) -> Tensor:
        """The key before any rotation, [D] in float64."""
        return self._raw(cell, frame)[token]

    def _raw(self, cell: Cell, frame: int) -> Tensor:
        """Those of a whole frame, [T, D]."""
        return self._turned(self._frame(*cell, frame)[0].to(DOUBLE), frame, self.places, -1)

    def _turned(self, keys: Tensor, frame: int, places: Tensor, sign: int = 1) -> Tensor:
        """Keys [R, D] turned to a frame and to their places in it; back with `sign=-1`."""
        angle = places.clone()
        angle[:, :TIME] += frame * self.theta
        return turned(keys, sign * angle, 0, self.style)

    def _part(self, cell: Cell, store: str, content: Sequence[Any]) -> tuple[Tensor, Tensor, int]:
        return self.made[cell, store, tuple(content)]  # type: ignore[index]

    def _made(self, cell: Cell, op: Op, part: Part) -> tuple[Tensor, Tensor, int]:
        """A part as its operator defines it, out of what is written now."""
        rows = op.materialize_part(part, HEIGHT, WIDTH)
        frames = sorted({frame for row in rows for frame, _ in row.weights})
        weights = torch.zeros(len(rows), len(frames), TOKENS, dtype=DOUBLE)
        for i, row in enumerate(rows):
            for (frame, token), weight in row.weights.items():
                weights[i, frames.index(frame), token] = weight
        keys = torch.stack([self._raw(cell, frame) for frame in frames])
        values = torch.stack([self._frame(*cell, frame)[1].to(DOUBLE) for frame in frames])
        raw, value = (torch.einsum("rft,ftd->rd", weights, x) for x in (keys, values))
        return self._turned(raw, part.at, self.places[[row.token for row in rows]]), value, part.at
