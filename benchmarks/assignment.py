"""How long it takes to assign kinds of memory to the heads of a model: `normalised` and `assign_kinds`.

    python benchmarks/assignment.py [--heads 40] [--repeats 51]

Prints the median and the slowest of the repeats, in milliseconds. It happens once a video, on the host, and nothing
else can go on meanwhile. Half of the heads become dummies.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from headforce.policy.assignment import assign_kinds, normalised

LAYERS = (10, 40, 100)


def assign_ms(heads: int, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds of every repeat: `assign_kinds` alone, and with `normalised` before it."""
    numbers, alone, whole = random.Random(heads), [], []
    for _ in range(repeats):
        first, middle = ([numbers.random() for _ in range(heads)] for _ in range(2))
        begin = time.perf_counter()
        gains = normalised(first, middle)
        between = time.perf_counter()
        assign_kinds(gains, heads // 2)
        end = time.perf_counter()
        alone.append((end - between) * 1e3)
        whole.append((end - begin) * 1e3)
    return alone, whole


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of assigning kinds of memory to all heads of a model.")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=51)
    args = parser.parse_args()
    print(f"layers x {args.heads} heads, {args.repeats} repeats; milliseconds")
    print(f"{'layers':>6} {'heads':>6} {'assign, median':>15} {'slowest':>8} {'with normalised':>16} {'slowest':>8}")
    for layers in LAYERS:
        heads = layers * args.heads
        alone, whole = assign_ms(heads, args.repeats)
        print(
            f"{layers:6} {heads:6} {statistics.median(alone):15.3f} {max(alone):8.3f}"
            f" {statistics.median(whole):16.3f} {max(whole):8.3f}"
        )


if __name__ == "__main__":
    main()
