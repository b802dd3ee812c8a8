"""How long a video takes that finds nothing compiled: as one graph or block by block, with empty caches and in a second
process that finds them.

    PYTHONPATH=. python benchmarks/compile_time.py [--layers 30] [--device cuda] [--out FILE.json]

The model is as deep as Wan 1.3B and as narrow as a test's, since what compilers do depends on the number of operations.
Nothing else may run on the machine: most of this is Python in one thread. Columns, seconds from the first call:

    first pass    until its first pass is done
    first chunk   two graphs: the first pass, and the passes behind it
    video         five graphs: those, the same once the cache holds frames, and one that evicts
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import first_chunk
import torch
from report import aligned, caption, facts, write
from sides import policy_of
from wan import CHUNK, DRY, WINDOW, config_of, example, make_model

import headforce

WAYS = {"one graph": None, "block by block": "blocks"}
COLUMNS = ("first pass", "first chunk", "video")


def measure(way: str, layers: int, device: torch.device) -> dict[str, Any]:
    """What the table has of a video in this process."""
    config = config_of(DRY, layers)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = make_model(config, dtype, device)
    context = torch.randn(1, config.text_len, config.text_dim).to(device, dtype)
    chunks = WINDOW // CHUNK + 2
    ends = []
    with headforce.prepare(model, policy_of("forcing_kv", config)) as session:
        session.compile(blocks=WAYS[way], inner="inductor")
        begin = time.perf_counter()
        for done in example.Rollout(model, config).passes(context, [CHUNK] * chunks):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append((time.perf_counter() - begin, done.clean))
        graphs = session.report.graphs
    first_clean = next(seconds for seconds, clean in ends if clean)
    return {
        "state": "ok",
        **dict(zip(COLUMNS, (ends[0][0], first_clean, ends[-1][0]), strict=True)),
        "graphs": graphs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("out/compile_time.json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        first_chunk.say(measure(given.way, given.layers, torch.device(given.device)))
        return 0
    arguments = ["--layers", str(given.layers), "--device", given.device]
    found = {way: first_chunk.twice(Path(__file__).name, [*arguments, "--way", way]) for way in WAYS}
    report = {"version": 1, "machine": facts(torch.device(given.device)), "layers": given.layers, "ways": found}
    write(report, given.out)
    rows = [["", *COLUMNS, "graphs"]]
    for way, runs in found.items():
        for name, run in zip(("empty caches", "a second process"), runs, strict=True):
            numbers = [f"{run[column]:.1f}" for column in COLUMNS] if run["state"] == "ok" else [run["reason"], "", ""]
            rows.append([f"{way}, {name}", *numbers, str(run.get("graphs", ""))])
    print(aligned(rows))
    print(caption(report["machine"]))
    return 0 if all(run["state"] == "ok" for runs in found.values() for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
