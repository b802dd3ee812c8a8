"""Rollouts on the CPU: headforce against what one would use instead, in ratios only.

    PYTHONPATH=. python benchmarks/cpu.py [--threads 2] [--inner inductor] [--out FILE.json]

The variants of `rollout.py` that make sense on a CPU, with a model of the demo's width: heads of 64, 240 tokens a
frame, chunks of 3 frames, a window of 21, float32. All run in turn, chunk by chunk. What counts are the last two
chunks, behind the second eviction, each of four noisy passes and a clean one, as in the demo; those before have fewer.
Times of a CPU say nothing about anybody's GPU, so none are reported. Every variant is checked first, at 24 tokens a
frame. Columns:

    over dense   how many times faster than dense attention in eager, the example model as it is
    FLOPs        dense FLOPs over those that are left, of a whole pass: what the ratio would be if all were as fast
    share        the former as a share of the latter; at least 0.85 is the aim
    processor    the share, by seconds of the processor over all threads: it says more on a busy machine
    ours         headforce's own time as a share of a chunk, both by seconds of the processor in the thread that runs
                 the model (`overhead.py`); under 3 % is the aim
    error        as in `rollout.py`

Exits with 1 if an output is wrong or something breaks. The aims are for a person to look at: nothing fails for them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bars
import torch
from check import Checks
from grouped import as_grouped
from overhead import Overhead, watched
from report import aligned, caption, facts, ratio, remark, write
from side_by_side import Plan, Result, Rollouts, Spent, check
from sides import (
    COUNTS,
    DENSE,
    Settings,
    Side,
    Variant,
    backends,
    bound_policy,
    dense_side,
    grouped_eager,
    ours,
    plain_compiled,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode
from wan import CHUNK, WINDOW, Video, example, make_model, twin

CHUNKS, STEADY = 10, 8
"""Chunks of the video, and the first that counts; the one before it is the first to evict."""

LEVELS = (1000.0, 937.5, 833.3, 625.0)
"""Timesteps of the noisy passes."""

SMALL = {"latent_height": 8, "latent_width": 12}
"""The size at which variants are checked."""


class Filling(Video):
    """A video whose first chunks have their clean pass only: they do not count, and fill the window. The last of them
    repeats a pass, so that everything is compiled when times count."""

    def passes(self, chunk: int) -> list[tuple[Tensor, Tensor]]:
        passes = super().passes(chunk)
        return passes if chunk >= STEADY else passes[-2:] if chunk == STEADY - 1 else passes[-1:]


def dense_eager(name: str) -> Variant:
    """The example model as it is."""

    def build(model: nn.Module, settings: Settings) -> Side:
        return dense_side(name, twin(model), settings.best)

    return Variant(name, DENSE, build)


def variants_of() -> list[Variant]:
    peers = [dense_eager("dense eager"), plain_compiled("dense compiled"), *map(grouped_eager, COUNTS)]
    return peers + [ours(meaning, "sdpa") for meaning in (DENSE, *COUNTS)]


def config_of(layers: int, tiny: bool) -> Any:
    base = replace(example.TINY, local_attn_size=WINDOW) if tiny else example.DEMO
    return replace(base, num_layers=layers)


def resized(model: Any, config: Any) -> Any:
    """The same model for another size of the video."""
    other = twin(model)
    other.config = config
    return other


@torch.no_grad()
def frames_read(model: Any, preset: str, settings: Settings) -> float:
    """Pairs of a query frame and a frame that it reads in a steady chunk, over all heads of the model."""
    own, _ = as_grouped(model, bound_policy(preset, model.config))
    video = Filling(model.config, LEVELS, torch.float32, settings.device)
    side = dense_side(preset, own, settings.best)
    for chunk in range(STEADY + 1):
        side.chunk(chunk, video.passes(chunk)[-1:], video.context)
    tokens, pairs = model.config.tokens_per_frame, 0
    for call in (call for block in own.blocks for call in block.self_attn.calls):
        rows = call.rows.stop - call.rows.start
        pairs += len(call.heads) * rows * (sum(key.shape[1] for key in call.keys) + CHUNK * tokens)
    return pairs / tokens**2


@torch.no_grad()
def flops(config: Any, small: nn.Module, settings: Settings) -> dict[str, float]:
    """FLOPs of a steady pass of each meaning: those of the first chunk without self-attention, counted without
    computing anything, and 4 * D for each pair of a query and a key."""
    with torch.device("meta"):
        model = example.CausalWan(config)
        side = dense_side("meta", model, SDPBackend.MATH)  # the only one whose products are all counted
        passes = Video(config, LEVELS, torch.float32, torch.device("cpu")).passes(0)[-1:]
        passes = [(x.to("meta"), t.to("meta")) for x, t in passes]
        with FlopCounterMode(display=False) as counter:
            side.chunk(0, passes, torch.empty(1, config.text_len, config.text_dim))
    pair = 4 * config.head_dim * config.tokens_per_frame**2
    heads = config.num_layers * config.num_heads
    rest = counter.get_total_flops() - pair * heads * CHUNK**2
    pairs = {DENSE: heads * CHUNK * WINDOW} | {preset: frames_read(small, preset, settings) for preset in COUNTS}
    return {meaning: rest + pair * count for meaning, count in pairs.items()}


class Shares:
    """Headforce's own part of the chunks that count, variant by variant: milliseconds of the thread by part, and those
    of chunks."""

    def __init__(self, overhead: Overhead) -> None:
        self.overhead = overhead
        self.of: dict[str, dict[str, float]] = {}
        self.spent: dict[str, float] = {}

    def __call__(self, variant: Variant, chunk: int, spent: Spent) -> None:
        taken = self.overhead.taken()
        if chunk >= STEADY and variant.ours:
            before = self.of.setdefault(variant.name, dict.fromkeys(taken, 0.0))
            self.of[variant.name] = {part: before[part] + ms for part, ms in taken.items()}
            self.spent[variant.name] = self.spent.get(variant.name, 0.0) + spent.thread

    def shares(self, name: str) -> dict[str, float]:
        return {part: ms / self.spent[name] for part, ms in self.of.get(name, {}).items()}


def shares(results: dict[str, Result], counted: dict[str, float], variants: list[Variant]) -> dict[str, dict[str, Any]]:
    """The ratios of every variant."""
    dense = results["dense eager"]
    found = {}
    for variant in variants:
        result = results[variant.name]
        over, ideal = ratio(dense.chunk_ms, result.chunk_ms), counted[DENSE] / counted[variant.meaning]
        processor = ratio(dense.processor_ms, result.processor_ms)
        grouped = results.get(f"grouped {variant.meaning}")
        found[variant.name] = {
            **{key: getattr(result, key) for key in ("state", "reason", "note", "error", "control")},
            "over_dense": over,
            "over_grouped": ratio(grouped.chunk_ms, result.chunk_ms) if grouped else None,
            "flops": ideal,
            "share": ratio(over, ideal),
            "processor": ratio(processor, ideal),
            "slowest": result.slowest_over_median,
            "held": ratio(result.held_bytes, dense.held_bytes),
        }
    return found


COLUMNS = {
    "over dense": ("over_dense", "{:.2f}"),
    "over grouped": ("over_grouped", "{:.2f}"),
    "FLOPs": ("flops", "{:.2f}"),
    "share": ("share", "{:.2f}"),
    "processor": ("processor", "{:.2f}"),
    "slowest": ("slowest", "{:.2f}"),
    "held": ("held", "{:.2f}"),
    "ours": ("ours", "{:.1%}"),
    "error": ("error", "{:.1e}"),
}


def table(found: dict[str, dict[str, Any]]) -> str:
    rows = [["variant", *COLUMNS, ""]]
    for name, result in found.items():
        values = [(result.get(key), form) for key, form in COLUMNS.values()]
        rows.append([name, *("" if v is None else form.format(v) for v, form in values), remark(result)])
    return aligned(rows)


def draw(report: dict[str, Any], path: Path) -> None:
    """One picture: how many times faster than dense attention, and bytes held."""
    panels = [
        (title, {name: result[key] for name, result in report["variants"].items()})
        for key, title in (
            ("over_dense", "a steady chunk: times faster than dense attention in eager"),
            ("held", "K and V held: share of what dense attention holds"),
        )
    ]
    bars.draw([panels], path, caption(report["machine"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3, help="of the model; at least 3")
    parser.add_argument("--inner", default="inductor", help="the plain compiler, and the one inside headforce")
    parser.add_argument("--tiny", action="store_true", help="a model so small that ratios mean nothing")
    parser.add_argument("--out", type=Path, default=Path("out/cpu.json"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # the check is so small that threads would wait for each other
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 512
    device, dtype = torch.device("cpu"), torch.float32
    config = config_of(arguments.layers, arguments.tiny)
    best, flash = backends(device, dtype, config.head_dim)
    settings = Settings(device, arguments.inner, best, flash, whole=False)
    model, video = make_model(config, dtype, device), Filling(config, LEVELS, dtype, device)
    small = resized(model, replace(config, **SMALL))
    variants = variants_of()
    # The inner compiler would compile everything for this size too.
    eager = replace(settings, inner="eager")
    results = check(variants, Checks(small, Video(small.config, LEVELS[:1], dtype, device), eager))
    if not arguments.tiny:
        torch._dynamo.reset()
    right = [variant for variant in variants if results[variant.name].state == "ok"]
    torch.set_num_threads(arguments.threads)
    print("  side by side", file=sys.stderr, flush=True)
    with watched() as overhead:
        own = Shares(overhead)
        Rollouts(model, video, settings, Plan(CHUNKS, 1, 0, STEADY), own).run(right, results, 0)
    found = shares(results, flops(config, small, settings), variants)
    for name in own.of:
        parts = own.shares(name)
        found[name] |= {"ours": sum(parts.values()), "ours_by_part": parts}
    ok = all(result["state"] == "ok" for result in found.values())
    report = {"version": 1, "machine": facts(device), "config": asdict(config), "ok": ok, "variants": found}
    report["settings"] = {"threads": arguments.threads, "inner": arguments.inner, "chunks": CHUNKS, "steady": STEADY}
    write(report, arguments.out)
    print(table(found))
    print(caption(report["machine"]))
    draw(report, arguments.out.with_suffix(".png"))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
