"""How long planning a chunk takes on the host: `Planner.plan`, and for comparison making its arrays.

    python benchmarks/planning.py [--layers 30] [--heads 12] [--chunks 80]

Prints the median and the 95th percentile over the chunks of a stream, in milliseconds, for policies of several kinds.
Planning runs once a chunk, while the device is busy with the passes of the chunk before. It should stay under 3 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time

from headforce.lowering.plan import ChunkPlan, Planner
from headforce.policy import BoundPolicy, Policy, Schedule, parse_rule

HEAD_KINDS = {
    "one window": ["window(18)"],
    "static and dynamic": ["sink(1)@collapse(21) | window(1)", "sink(1) | stride(6, phase=0, last=2) | window(1)"],
    "wave, anchor, veil": [
        'sink(1)@collapse(21) | stride(6, phase="query", last=4)@collapse(21) | window(1)',
        "sink(3)@collapse(21) | stride(6, phase=0, last=4)@collapse(21) | window(1)",
        "sink(3)@collapse(21) | window(1)",
    ],
    "a hundred rules": [f"sink({1 + i % 5})@collapse(21) | window({1 + i // 5})" for i in range(100)],
}


def policy_of(rules: list[str], layers: int, heads: int) -> BoundPolicy:
    """A policy whose heads take turns with `rules`."""
    classes = {f"class{i}": parse_rule(rule) for i, rule in enumerate(rules)}
    members: dict[int, dict[str, tuple[int, ...]]] = {}
    for cell in range(layers * heads):
        by_class = members.setdefault(cell // heads, {})
        name = f"class{cell % len(rules)}"
        by_class[name] = (*by_class.get(name, ()), cell % heads)
    return Policy(classes, heads=members).bind(layers=layers, heads=heads)


def plan_ms(policy: BoundPolicy, schedule: Schedule) -> tuple[list[float], list[float]]:
    """Milliseconds per chunk of `Planner.plan`, and of plan and arrays together."""
    planner, planned, whole = Planner(policy), [], []
    for chunk in schedule:
        begin = time.perf_counter()
        plan = planner.plan(chunk)
        planned.append((time.perf_counter() - begin) * 1e3)
        _arrays(plan)
        whole.append((time.perf_counter() - begin) * 1e3)
    return planned, whole


def _arrays(plan: ChunkPlan) -> int:
    return sum(reading.frames.size for head in plan.heads for reading in head.readings)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of planning one chunk.")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--chunks", type=int, default=80)
    args = parser.parse_args()
    print(f"{args.layers} layers x {args.heads} heads, {args.chunks} chunks of 3 frames; milliseconds per chunk")
    print(f"{'policy':22} {'rules':>5} {'plan, median':>13} {'95 %':>7} {'with arrays':>12}")
    for name, rules in HEAD_KINDS.items():
        policy = policy_of(rules, args.layers, args.heads)
        planned, whole = plan_ms(policy, Schedule((3,) * args.chunks))
        late = sorted(planned)[int(0.95 * len(planned))]
        print(
            f"{name:22} {len(policy.distinct):5} {statistics.median(planned):13.3f} {late:7.3f}"
            f" {statistics.median(whole):12.3f}"
        )


if __name__ == "__main__":
    main()
