"""Whole rollouts of a causal Wan 1.3B, chunk by chunk: headforce against what one would use instead, on one GPU.

    PYTHONPATH=. python benchmarks/rollout.py [--quick] [--size 480p ...] [--frames 21 ...] [--out FILE.json]
    PYTHONPATH=. python benchmarks/rollout.py --dry-run    # without a GPU: tiny shapes, every check, no times

docs/performance.md says what each variant is, what is timed, and what is left out. In short: the model has the real
dimensions and random weights; a chunk is 3 latent frames (12 frames of video), 4 noisy passes and a clean one; all
variants run side by side in one process, in turn, chunk by chunk, on the same latents; batch 1, bfloat16, no text
encoder, no VAE. Before anything is timed every variant is checked with a short model (`check.py`); one that is wrong,
refuses or breaks gets no time. Exits with 1 if something is wrong or headforce breaks, with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import first_chunk
import torch
from check import Checks
from report import caption, facts, write
from rollout_report import compare, draw, table
from side_by_side import Plan, Result, Rollouts, batches, because, check
from sides import (
    COUNTS,
    DENSE,
    ONLINE,
    Settings,
    Variant,
    backends,
    dense_eager,
    grouped_eager,
    ours,
    plain_compiled,
)
from torch._dynamo.utils import counters
from wan import CHUNK, DRY, RESOLUTIONS, WINDOW, Resolution, Video, config_of, example, make_model

from headforce.testing.rerun import rerunning

QUICK = (
    "a0",
    "a1",
    "b",
    *(f"grouped {preset}" for preset in COUNTS),
    *(f"headforce {meaning} triton" for meaning in (DENSE, *COUNTS)),
    "headforce forcing_kv triton graphs",
    "headforce forcing_kv hopper graphs",
)
"""Variants of `--quick`."""


def all_variants(targets: Sequence[str]) -> list[Variant]:
    """Every variant, in the order in which they run. What is compared with comes first."""
    peers = [dense_eager("a0", best=False), dense_eager("a1", best=True), plain_compiled("b")]
    peers += [grouped_eager(preset) for preset in COUNTS]
    meanings = (DENSE, "self_forcing", *COUNTS, ONLINE)
    return peers + [
        ours(meaning, target, graphs) for target in targets for graphs in (False, True) for meaning in meanings
    ]


def measure(arguments: argparse.Namespace, resolution: Resolution, report: dict[str, Any]) -> None:
    """All lengths at one resolution; the report is written whenever something new is known of a variant."""
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    dtype = torch.float32 if arguments.dry_run else torch.bfloat16
    config = config_of(resolution, arguments.layers)
    variants = chosen(arguments)
    firsts = {
        v.name: first_chunk.twice("rollout.py", [*arguments.child, "--size", resolution.name, "--first-chunk", v.name])
        for v in variants
        if any(text in v.name for text in arguments.cold)
    }
    model = make_model(config, dtype, device)
    settings = settings_of(arguments, config, device, dtype)
    report["settings"]["sdpa"] = {"a0": settings.flash.name, "others": settings.best.name}
    video = Video(config, example.SELF_FORCING_TIMESTEPS, dtype, device)
    cases = [
        {"case": f"{resolution.name} {frames} frames", "config": asdict(config), "frames": frames, "variants": {}}
        for frames in arguments.frames
    ]
    report["cases"] += cases

    def known(case: dict[str, Any], results: dict[str, Result]) -> None:
        for name, result in results.items():
            result.first_chunk = firsts.get(name)
        found = {name: asdict(result) for name, result in results.items()}
        case["variants"] = compare(found, [variant for variant in variants if variant.name in found])
        write(report, arguments.out)

    if arguments.unchecked:
        checked = {variant.name: Result() for variant in variants}
    else:
        checks = Checks(model, video, settings)
        checked = check(variants, checks, lambda results: [known(case, results) for case in cases])
    if not arguments.dry_run:
        torch._dynamo.reset()  # the graphs of the short model would be looked through in every call
    for case in cases:
        print(case["case"], file=sys.stderr, flush=True)
        results = {name: replace(result) for name, result in checked.items()}
        right = [variant for variant in variants if results[variant.name].state == "ok"]
        plan, tell = Plan.of(case["frames"], timed=not arguments.dry_run), partial(known, case)
        rollouts = Rollouts(model, video, settings, plan, known=tell)
        room = float("inf")
        if rollouts.on_gpu:
            torch.cuda.empty_cache()
            room = torch.cuda.mem_get_info()[0] * 0.6  # the rest is for activations
        for number, batch in enumerate(batches(right, config, dtype.itemsize, room)):
            rollouts.run(batch, results, number)
            tell(results)


def settings_of(arguments: argparse.Namespace, config: Any, device: torch.device, dtype: torch.dtype) -> Settings:
    best, flash = backends(device, dtype, config.head_dim)
    return Settings(device, arguments.inner, best, flash, whole=not arguments.blocks)


def chosen(arguments: argparse.Namespace) -> list[Variant]:
    """The variants that were asked for."""
    found = all_variants(arguments.targets)
    if arguments.only:
        # A name alone is one variant, also where others have more behind it.
        exact = {variant.name for variant in found} & set(arguments.only)
        parts = tuple(f"{text} " for text in arguments.only if text not in exact)
        return [v for v in found if v.name in exact or v.name.startswith(parts)]
    return [v for v in found if v.name in QUICK] if arguments.quick and not arguments.dry_run else found


def report_first_chunk(arguments: argparse.Namespace) -> None:
    """What a child does: makes a variant, and says how long its first chunk took."""
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    dtype = torch.float32 if arguments.dry_run else torch.bfloat16
    resolution = sizes(arguments)[0]
    config = config_of(resolution, arguments.layers)
    model, settings = make_model(config, dtype, device), settings_of(arguments, config, device, dtype)
    video = Video(config, example.SELF_FORCING_TIMESTEPS, dtype, device)
    variant = next(v for v in all_variants(arguments.targets) if v.name == arguments.first_chunk)
    rollouts = Rollouts(model, video, settings, Plan(1, 1, 0, timed=not arguments.dry_run))
    try:
        begin = time.perf_counter()
        side = variant.build(model, settings)
        rollouts._chunk(side, 0)
        seconds = time.perf_counter() - begin
        graphs = counters["stats"]["unique_graphs"]
        first_chunk.say(
            {"state": "ok", "reason": None, "seconds": seconds if rollouts.plan.timed else None, "graphs": graphs}
        )
    except Exception as error:
        result = because(error, variant)
        first_chunk.say({"state": result.state, "reason": result.reason, "seconds": None})


def sizes(arguments: argparse.Namespace) -> list[Resolution]:
    if arguments.dry_run:
        return [DRY]
    wanted = arguments.size or ([RESOLUTIONS[0].name] if arguments.quick else [r.name for r in RESOLUTIONS])
    return [resolution for resolution in RESOLUTIONS if resolution.name in wanted]


def holds(report: dict[str, Any]) -> bool:
    """Nothing is wrong, and nothing failed. To refuse is allowed, and so is a peer that does not fit into memory."""
    results = [result for case in report["cases"] for result in case["variants"].values()]
    states = [result["state"] for result in results]
    states += [one["state"] for result in results for one in result["first_chunk"] or ()]
    return not {"wrong", "failed"} & set(states)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="480p, 30 frames, the main variants, block by block")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: tiny shapes, checks, no times")
    parser.add_argument("--size", action="append", choices=[r.name for r in (*RESOLUTIONS, DRY)], help="repeatable")
    parser.add_argument("--frames", action="append", type=int, help="latent frames; repeatable; 21 and 120 without")
    parser.add_argument("--layers", type=int, help="fewer compile sooner; ratios are then those of a shorter model")
    parser.add_argument("--only", action="append", metavar="NAME", help="variants of this name; repeatable")
    parser.add_argument("--target", action="append", dest="targets", help="of headforce; repeatable")
    parser.add_argument("--inner", default=None, help="inductor; eager in a dry run")
    parser.add_argument("--blocks", action="store_true", help="compile block by block, which is sooner done")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="without float32 references, slow at 1080p: outputs of variants that mean the same are still compared",
    )
    parser.add_argument("--cold", action="append", metavar="TEXT", help="time the first chunk of these; repeatable")
    parser.add_argument("--first-chunk", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("out/rollout.json"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    given = list(sys.argv[1:] if argv is None else argv)
    arguments.child = [word for word in given if word in ("--dry-run", "--blocks", "--quick")]
    for name in ("layers", "inner"):
        if getattr(arguments, name):
            arguments.child += [f"--{name}", str(getattr(arguments, name))]
    arguments.inner = arguments.inner or ("eager" if arguments.dry_run else "inductor")
    arguments.blocks |= arguments.quick
    arguments.targets = arguments.targets or (["sdpa"] if arguments.dry_run else ["triton", "hopper"])
    arguments.child += [word for target in arguments.targets for word in ("--target", target)]
    arguments.frames = arguments.frames or ([27] if arguments.dry_run else [30] if arguments.quick else [21, 120])
    arguments.cold = arguments.cold or []
    if min(arguments.frames) < WINDOW or any(frames % CHUNK for frames in arguments.frames):
        parser.error(f"a rollout has at least {WINDOW} frames, in chunks of {CHUNK}")
    if not chosen(arguments):
        parser.error(f"no variant is called {', '.join(arguments.only)}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parsed(argv)
    if not arguments.dry_run and not torch.cuda.is_available():
        print("no CUDA device: times need one. --dry-run checks everything else without.", file=sys.stderr)
        return 2
    if arguments.dry_run:
        torch.set_num_threads(1)  # tensors are so small that threads would wait for each other
    torch.backends.cudnn.allow_tf32 = False  # the references are float32
    # Dynamo counts the graphs of a function, and all sides run the same ones.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 512
    if arguments.first_chunk:
        with rerunning() if arguments.dry_run else nullcontext():
            report_first_chunk(arguments)
        return 0
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    named = ("dry_run", "quick", "frames", "layers", "targets", "inner", "blocks", "unchecked")
    settings = {name: getattr(arguments, name) for name in named} | {"chunk": CHUNK, "window": WINDOW}
    report = {"version": 1, "machine": facts(device), "settings": settings, "ok": False, "cases": []}
    # Without a GPU a stand-in captures and replays, so that all but the graphs themselves is checked.
    with rerunning() if arguments.dry_run else nullcontext():
        for resolution in sizes(arguments):
            measure(arguments, resolution, report)
    report["ok"] = holds(report)
    write(report, arguments.out)
    print(table(report))
    print(caption(report["machine"]))
    draw(report, arguments.out.with_suffix(".png"))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
