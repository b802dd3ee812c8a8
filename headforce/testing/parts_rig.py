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
        return self.turn(self._frame(*cell, frame)[0][token].to(DOUBLE), frame, token, -1)

    def turn(self, key: Tensor, frame: int, token: int, sign: int = 1) -> Tensor:
        """A key [D] turned to a frame and the place of a token; back with `sign=-1`."""
        angle = self.places[token].clone()
        angle[:TIME] += frame * self.theta
        return turned(key[None], sign * angle, 0, self.style)[0]

    def _part(self, cell: Cell, store: str, content: Sequence[Any]) -> tuple[Tensor, Tensor, int]:
        return self.made[cell, store, tuple(content)]  # type: ignore[index]

    def _made(self, cell: Cell, op: Op, part: Part) -> tuple[Tensor, Tensor, int]:
        """A part as its operator defines it, out of what is written now."""
        keys, values = [], []
        for row in op.materialize_part(part, HEIGHT, WIDTH):
            key = sum(weight * self.raw(cell, *place) for place, weight in row.weights.items())
            keys.append(self.turn(key, part.at, row.token))  # type: ignore[arg-type]
            of_rows = ((self._frame(*cell, f)[1][t].to(DOUBLE), weight) for (f, t), weight in row.weights.items())
            values.append(sum(weight * value for value, weight in of_rows))
        return torch.stack(keys), torch.stack(values), part.at  # type: ignore[arg-type]
