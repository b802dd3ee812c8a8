"""What the inner compiler gives: the example model under headforce, with Inductor inside and with none.

    python benchmarks/inner_compiler.py

The same weights, text and noise, `native()` in owned mode, compiled block by block; both sides in turn, pass by pass,
in one process. A chunk's time is the sum over its passes of the median over the last chunks, those in which the cache
evicts; passes that compile are left out. Seconds of the processor, over all threads, say more on a busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

import headforce
from headforce.demo.example import load_example, twin
from headforce.demo.runner import Runner, compile_model, in_step, relative_error
from headforce.demo.settings import CHUNK, NOISY_PASSES, Settings
from headforce.policy import Policy

INNER = ("eager", "inductor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["demo", "tiny"], default="demo", help="size of the model")
    parser.add_argument("--layers", type=int, help="fewer of them compile sooner")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.recompile_limit = 32  # it counts the graphs of a function, and both sides run the same ones
    settings = Settings(preset=arguments.preset, chunks=arguments.chunks)
    example = load_example(settings.model)
    config = example.PRESETS[settings.preset]
    config = replace(config, num_layers=arguments.layers or config.num_layers)
    evicting = settings.evicting(config.cache_frames)
    model = example.init_random(example.CausalWan(config), settings.seed, peaked=True).eval()
    text = torch.randn(1, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(settings.seed))
    runners = []
    with ExitStack() as stack:
        for inner in INNER:
            own = twin(model)
            session = stack.enter_context(headforce.prepare(own, Policy({})))
            compiled = compile_model(own, "headforce", settings.whole, {"inner": inner})
            rollout = example.Rollout(compiled, config, tuple(example.SELF_FORCING_TIMESTEPS[:NOISY_PASSES]))
            passes = rollout.passes(text, [CHUNK] * settings.chunks, settings.seed)
            runners.append(Runner(inner, inner, rollout, passes, session))
        processor: dict[str, list[float]] = {inner: [] for inner in INNER}
        begin = time.process_time()
        for runner, _ in in_step(runners):
            processor[runner.name].append(time.process_time() - begin)
            begin = time.process_time()
        for runner in runners:
            assert runner.session is not None
            if set(runner.session.launches) != {settings.chunks * (NOISY_PASSES + 1)}:
                raise AssertionError(f"{runner.name}: a pass that headforce did not compile")
    spent = {runner.name: chunk_seconds(runner, processor[runner.name], evicting[0]) for runner in runners}
    for runner in runners:
        passed, used = runner.chunk_seconds(evicting[0]) * 1e3, spent[runner.name] * 1e3
        print(f"inner={runner.name:<9} {passed:9.1f} ms a chunk, {used:9.1f} of the processor; {runner.graphs} graphs")
    ratio = runners[1].chunk_seconds(evicting[0]) / runners[0].chunk_seconds(evicting[0])
    difference = relative_error(runners[1].video, runners[0].video)
    print(f"ratio {ratio:.3f}, of the processor {spent['inductor'] / spent['eager']:.3f}; difference {difference:.1e}")


def chunk_seconds(runner: Runner, seconds: Sequence[float], since: int) -> float:
    """As `Runner.chunk_seconds`, for other seconds than those of the clock on the wall."""
    times = [replace(one, seconds=own) for one, own in zip(runner.times, seconds, strict=True)]
    return replace(runner, times=times).chunk_seconds(since)


if __name__ == "__main__":
    main()
