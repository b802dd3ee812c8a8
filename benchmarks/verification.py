"""What verification costs: the time of a pass at every level, against the same pass unchecked.

    python benchmarks/verification.py

Two layers of the demo's model (12 heads x 64, 240 tokens a frame, chunks of 3 frames, window 21) under the demo's
policy, target `sdpa`, Inductor inside. The levels take turns, pass by pass, over one stream with a full window, so they
see the same work and the same load. Checks of plans fall on the first pass of a chunk, which counts like the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch

import headforce
from examples.causal_wan import DEMO, CausalWan, Rollout, init_random
from headforce.lowering.verify import Verification
from headforce.lowering.verify.settings import LEVELS

FILLING = 9  # chunks, after which the window is full and the model's own cache evicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=4, help="measured chunks, after the window has filled")
    parser.add_argument("--inner", default="inductor")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = dataclasses.replace(DEMO, num_layers=2)
    model = init_random(CausalWan(config).eval())
    text = torch.randn(1, config.text_len, config.text_dim)
    times: dict[str, list[float]] = {level: [] for level in LEVELS}
    with headforce.prepare(model, policy="examples/policies/sink_window.yaml", verify="full") as session:
        session.compile(inner=arguments.inner)
        # As many passes a chunk as there are levels: each has every kind of pass once in so many chunks.
        rollout = Rollout(model, config, timesteps=(1000.0, 900.0, 800.0))
        begun = time.perf_counter()
        for i, _ in enumerate(rollout.passes(text, [3] * (FILLING + len(LEVELS) * arguments.chunks))):
            chunk, step = divmod(i, len(LEVELS))
            seconds, begun = time.perf_counter() - begun, time.perf_counter()
            if chunk >= FILLING:
                times[session.verify.level].append(seconds)
            session.verify = Verification(LEVELS[(step + 1 + chunk) % len(LEVELS)])
            begun = time.perf_counter()
    plain = statistics.median(times["off"])
    for level, seconds in times.items():
        print(f"{level:<5} {statistics.median(seconds) * 1e3:8.1f} ms a pass, {statistics.median(seconds) / plain:.2f}")


if __name__ == "__main__":
    main()
