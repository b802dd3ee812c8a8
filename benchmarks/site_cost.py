"""One compiled attention site on CPU against dense attention: how much of the ideal saving arrives.

    python benchmarks/site_cost.py

Twelve heads of 64, 240 tokens a frame, chunks of 3 frames. Dense attention reads 21 frames, the chunk included; a
third of the heads each read 4, 8 and 21 of them. The ideal time is the share of score rows that is left. Our time holds
everything that a chunk costs: planning, tables, writing pages and attention, for one noisy and one clean pass, with one
commit. Dense time is the in-place cache write and `scaled_dot_product_attention` on the slice, as the model has them.
Both run in turns in one process, on random data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from headforce.lowering import ops  # noqa: F401  registers the operators
from headforce.lowering.pool import PagePool, PageShape
from headforce.lowering.stream import Stream
from headforce.policy import Policy

HEADS, DIM, ROWS, CHUNK, DENSE = 12, 64, 240, 3, 21
READS = (4, 8, 21)
PASSES = 2


def policy() -> Policy:
    names = {f"read{n}": n for n in READS}
    rules = {name: f"span({n})" for name, n in names.items()}
    third = HEADS // len(READS)
    heads = {name: list(range(i * third, (i + 1) * third)) for i, name in enumerate(names)}
    return Policy.loads(json.dumps({"headforce": 0, "classes": rules, "heads": {"0": heads}}))


class Ours:
    def __init__(self, dtype: torch.dtype) -> None:
        self.stream = Stream(policy().bind(layers=1, heads=HEADS))
        self.pool = PagePool(self.stream, PageShape(1, ROWS, DIM, DIM, dtype, torch.device("cpu")))
        self.theta = torch.zeros(0, dtype=torch.float64)

    def chunk(self, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for _ in range(PASSES):
            if self.stream.chunk is None or self.stream.chunk.start != start:
                self.stream.begin(start, CHUNK)
                self.pool.update()
            pool = self.pool
            torch.ops.headforce.write_pages(k, v, pool.k, pool.v, pool.pages[0])
            torch.ops.headforce.ragged_attention(
                q, pool.k, pool.v, pool.reads[0], pool.runs[0], self.theta, 0, "interleaved", DIM**-0.5, "sdpa"
            )


class Dense:
    def __init__(self, dtype: torch.dtype) -> None:
        self.k = torch.randn(1, DENSE * ROWS, HEADS, DIM, dtype=dtype)
        self.v = torch.randn(1, DENSE * ROWS, HEADS, DIM, dtype=dtype)

    def chunk(self, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        for _ in range(PASSES):
            self.k[:, -CHUNK * ROWS :] = k
            self.v[:, -CHUNK * ROWS :] = v
            F.scaled_dot_product_attention(q.transpose(1, 2), self.k.transpose(1, 2), self.v.transpose(1, 2))


def timed(run: Callable[..., None], start: int, tensors: tuple[torch.Tensor, ...]) -> float:
    begin = time.perf_counter()
    run(start, *tensors)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20, help="measured chunks, after the window has filled")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    ours, dense = Ours(dtype), Dense(dtype)
    filling = DENSE // CHUNK + 1
    times: list[tuple[float, float, float]] = []
    for i in range(filling + arguments.chunks):
        tensors = tuple(torch.randn(1, CHUNK * ROWS, HEADS, DIM, dtype=dtype) for _ in range(3))
        first = timed(dense.chunk, i * CHUNK, tensors)
        measured = timed(ours.chunk, i * CHUNK, tensors)
        again = timed(dense.chunk, i * CHUNK, tensors)
        if i >= filling:
            times.append((first, measured, again))
    first, measured, again = (statistics.median(column) for column in zip(*times, strict=True))
    ideal = sum(READS) / len(READS) / DENSE
    ratio = measured / min(first, again)
    print(f"dense  {first * 1e3:8.1f} ms a chunk of {PASSES} passes; the same again {again * 1e3:.1f} ms")
    print(f"ours   {measured * 1e3:8.1f} ms")
    print(f"ratio  {ratio:.3f}; ideal {ideal:.3f}; {ideal / ratio:.2f} of the ideal saving")


if __name__ == "__main__":
    main()
