"""What the probe costs beside the attention that it measures, site by site: time, and bytes that it keeps.

    python benchmarks/probe.py --frames 21 --tokens 240 --heads 12 --dim 64

Attention and probe run in turn, so that a busy machine slows both alike; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from headforce.lowering.measuring import SCORES, measure
from headforce.lowering.state.sampling import sampled_rows

SHARES = (0.05, 0.25, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 21), ("chunk", 3), ("tokens", 240), ("heads", 12), ("dim", 64), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)

    def made(frames: int) -> torch.Tensor:
        shape = (1, frames * given.tokens, given.heads, given.dim)
        return torch.randn(shape, generator=generator).to(device, getattr(torch, given.dtype))

    query, key = made(given.chunk), made(given.frames)
    kept = torch.zeros(3, 1, given.heads, 1, given.frames, device=device)
    runs: dict[str, Callable[[], object]] = {
        "attention": lambda: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, key)))
    }
    for share in SHARES:
        rows = sampled_rows(share, 0, given.chunk * given.tokens, given.chunk).to(device)
        runs[f"probe {share:g}"] = lambda rows=rows: measure(query, key, rows, kept, given.dim**-0.5)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "seconds": medians,
        "times_attention": {name: value / medians["attention"] for name, value in medians.items()},
        "kept_bytes": kept.nbytes,
        "score_bytes": 4 * SCORES,
    }
    print(json.dumps(report, indent=1))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
