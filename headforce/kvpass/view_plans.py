"""Plans and tables of a policy for models that keep their caches. They depend on no stream, so streams share them."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..lowering.bounds import check_bounds
from ..lowering.operand_tables import operand_tables
from ..lowering.plan import ChunkPlan, Planner
from ..lowering.pool import processors_of
from ..lowering.reach import check_reach
from ..lowering.schedule import part_tiles
from ..lowering.verify import check_operands
from ..policy import BoundPolicy, Chunk, FrameSet, Policy, Rule, parse_rule
from .layers import PassFacts

KEPT = 64
"""Chunks whose tables are kept: the layers and noisy passes of a chunk, of a few streams side by side."""

Tables = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""`reads` and `runs`, one tensor for each layer."""


class ViewPlans:
    """What `policy` makes of a model of `layers` layers. Use `ViewPlans.of`, which shares them."""

    _shared: ClassVar[WeakValueDictionary[tuple[Policy, int, bool], ViewPlans]] = WeakValueDictionary()

    def __init__(self, policy: Policy, layers: int, verify: bool) -> None:
        self.policy = policy
        self.layers = layers
        self.verify = verify
        self._planners: dict[tuple[str, int], Planner] = {}
        self._made: OrderedDict[tuple[object, ...], tuple[ChunkPlan, Tables]] = OrderedDict()

    @staticmethod
    def of(policy: Policy, layers: int, verify: bool = False) -> ViewPlans:
        """The plans of a policy, made once."""
        key = (policy, layers, verify)
        found = ViewPlans._shared.get(key)
        if found is None:
            found = ViewPlans._shared[key] = ViewPlans(policy, layers, verify)
        return found

    def at(self, chunk: Chunk, held: FrameSet, facts: PassFacts, heads: int) -> tuple[ChunkPlan, Tables]:
        """The plan of a chunk, and its tables on the device. `held` are the past frames that the model itself reads.

        Raises HF-VIEW for rules with state; HF-EVICTED for rules that read, or will read, what the model has evicted.
        """
        key = (chunk, held, facts.cache_rows, facts.rows, facts.batch, facts.device, heads)
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key]
        native = view_rule(held, chunk, facts.cache_rows // facts.rows)
        planner = self._planner(native, heads, chunk, facts)
        plan = planner.plan(chunk)
        processors = processors_of(facts.device)
        arrays = operand_tables(plan, held, facts.rows, facts.batch, processors)
        rows, tokens = (len(held) + chunk.frames) * facts.rows, (chunk.lead + chunk.frames) * facts.rows
        room = part_tiles(arrays[0].shape[1], facts.batch * heads, tokens, processors)
        check_bounds(*arrays, batch=facts.batch, heads=heads, tokens=tokens, rows=rows, part_tiles=room)
        if self.verify:
            check_operands(planner.policy, plan, arrays, held, facts.rows, facts.batch)
        with torch.inference_mode(False):
            reads, runs = (torch.from_numpy(array).to(facts.device).unbind(0) for array in arrays)
        self._made[key] = plan, (reads, runs)
        if len(self._made) > KEPT:
            self._made.popitem(last=False)
        return self._made[key]

    def _planner(self, native: Rule, heads: int, chunk: Chunk, facts: PassFacts) -> Planner:
        key = (str(native), heads)
        if key not in self._planners:
            bound = self.policy.bind(layers=self.layers, heads=heads, native=native, tokens=facts.rows)
            check_view(bound, chunk, facts)
            self._planners[key] = Planner(bound)
        return self._planners[key]


def check_view(policy: BoundPolicy, chunk: Chunk, facts: PassFacts) -> None:
    """HF-VIEW for rules with state; HF-EVICTED for rules beyond what the model's cache can hold from `chunk` on."""
    stateful = [r.rule for r in policy.distinct if r.rule.stateful or (r.warmup and r.warmup.stateful)]
    if stateful:
        raise HeadforceError(
            "HF-VIEW", found=f"{stateful[0]}, a rule with state", needed="rules of frame numbers alone"
        )
    if facts.cache_rows > facts.first_row or facts.evicted:  # a cache of fixed size
        check_reach(policy, chunk, facts.cache_rows // facts.rows)


def view_rule(held: FrameSet, chunk: Chunk, capacity: int) -> Rule:
    """The rule of a model that reads `held` in front of `chunk`, from a cache of `capacity` frames.

    While nothing has been evicted, that is all there is: the rule is then the one that holds until the cache is full,
    so that it is the same for every chunk. A past without a capacity is given room in powers of two.
    """
    if held == FrameSet.interval(0, chunk.start):
        return parse_rule(f"span({capacity if chunk.stop <= capacity else 1 << chunk.stop.bit_length()})")
    window = next(n for n in range(chunk.start + 1) if chunk.start - n - 1 not in held)
    sink = len(held) - window
    if held != FrameSet.interval(0, sink) | FrameSet.interval(chunk.start - window, chunk.start):
        raise HeadforceError(
            "HF-NATIVE", found=f"a model that reads frames {held}", needed="first frames, newest frames, or both"
        )
    newest = f"span({window + chunk.frames})"
    return parse_rule(f"sink({sink}) | {newest}" if sink else newest)
