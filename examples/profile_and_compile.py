"""Profile a model, get a policy, run the compiled model under it, and check it against the eager one.

    python -m examples.profile_and_compile                                     # the example model
    python -m examples.profile_and_compile TARGET --method forcing_kv --budget 0.5

TARGET is what `headforce profile` takes: FILE.py:FUNCTION or package.module:NAME. Where HEADFORCE_UPSTREAM names a
folder with a checkout `self-forcing`, `tests/upstream/doctor_targets.py:self_forcing` is its unmodified model, small,
with random weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from examples.causal_wan import DEMO, TINY, CausalWan, Rollout, WanConfig, init_random
from headforce.calls import load_example
from headforce.presets import read_policy
from headforce.profile.measure import measure
from headforce.profile.measured import Sample
from headforce.profile.progress import Progress
from headforce.profile.report import judge
from headforce.profile.results import write_results
from headforce.profile.rollouts import Rollouts
from headforce.verify.rollout import Way
from headforce.verify.verdict import verify

Made = tuple[CausalWan, Callable[..., torch.Tensor]]


def tiny() -> Made:
    """The example model in its smallest size: 2 layers of 4 heads, a window of 6 frames."""
    return _example(TINY, chunks=4)


def demo() -> Made:
    """In the size of `make demo`: 8 layers of 12 heads, and a video that fills the window of 21 frames."""
    return _example(DEMO, chunks=7)


def _example(config: WanConfig, chunks: int) -> Made:
    model = init_random(CausalWan(config), peaked=True).eval()

    def rollout(model: CausalWan, prompt: int = 0, seed: int = 0) -> torch.Tensor:
        text = torch.randn(1, config.text_len, config.text_dim, generator=torch.Generator().manual_seed(1000 + prompt))
        return Rollout(model, config, timesteps=(1000.0,)).generate(text, [3] * chunks, seed=seed)

    return model, rollout


def main() -> int:
    """Returns 1 if the compiled model does not equal the eager one."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("target", nargs="?", default=f"{__file__}:tiny")
    arguments.add_argument("--method", default="forcing_kv")
    arguments.add_argument("--budget", type=float, help="share of the model's own K and V that the policy may hold")
    arguments.add_argument("--out", type=Path, default=Path("out/profile"))
    arguments.add_argument("--inner", default="inductor")
    given = arguments.parse_args()

    example = load_example(given.target)
    sample = Sample(queries=0.25, seed=0, by_query=False)
    profile = measure(
        Rollouts.of(example),
        given.out,
        sample=sample,
        source=given.target,
        options={"inner": given.inner},
        progress=Progress(),
    )
    report = write_results(judge(profile, given.method, budget=given.budget), given.out)
    print(f"{given.method}: {report['counts']}; look at {given.out / report['page']}")

    verdict = verify(example, read_policy(given.out / report["policy"]), Way(inner=given.inner))
    print(verdict)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
