"""CUDA graphs of whole passes, and passes that never wait for the device. `make gpu` runs these.

They run on the CPU as those of `test_gpu.py` do, with a stand-in for the graphs.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy, Warmup, parse_rule
from headforce.testing.rerun import rerunning

from .conftest import text, wan
from .oracle_model import oracle_model
from .test_gpu import GPU, MOVING, NATIVE, WAYS, blocks_on
from .test_owned_identity import relative

# Not from a file: reading one takes packages that the machine of `make gpu` may lack.
SHRINKING = Policy({"a": parse_rule("window(1)")}, "a", warmup=Warmup(3, parse_rule("window(9)")))


@pytest.fixture(autouse=True)
def _stand_in():
    with rerunning():
        yield


def rollout_of(model, device):
    return Rollout(model, model.config, timesteps=(1000.0, 625.0)), text(model.config).to(device)


@pytest.mark.parametrize(("device", "inner"), WAYS)
@pytest.mark.parametrize("policy", [NATIVE, MOVING, SHRINKING], ids=["native", "moving", "shrinking"])
def test_replays_equal_passes_that_run(policy, device, inner):
    """Over commits, evictions, pools that are laid out anew, and another video."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = wan(sink_size=1, num_layers=2).to(device)
    reference, context = rollout_of(model if policy is NATIVE else oracle_model(model, policy), device)
    expected = reference.generate(context, [3] * 6, seed=0)
    with headforce.prepare(model, policy) as session:
        session.compile(inner=inner, blocks=blocks_on(device), cudagraphs=True)
        rollout, context = rollout_of(model, device)
        for _ in range(2):
            assert relative(rollout.generate(context, [3] * 6, seed=0), expected) < 1e-4
        assert session.launches == [36, 36]
        assert session.replays > 18


@pytest.mark.parametrize(("device", "inner"), WAYS)
def test_videos_side_by_side_each_on_its_own_stream(device, inner):
    """They share graphs, buffers and the memory of captured passes, which one has to itself at a time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, videos = wan(sink_size=1, num_layers=2).to(device), []
    reference, context = rollout_of(oracle_model(model, MOVING), device)
    expected = [reference.generate(context, [3] * 4, seed=seed) for seed in (0, 1)]
    with torch.no_grad(), headforce.prepare(model, MOVING) as session:
        session.compile(inner=inner, blocks=blocks_on(device), cudagraphs=True)
        for seed in (0, 1):
            rollout, _ = rollout_of(model, device)
            rollout.generate(context, [3] * 4, seed=seed)  # what is run for the first time is set up
            stream = torch.cuda.Stream() if device == "cuda" else None
            videos.append((rollout.passes(context, [3] * 4, seed=seed), stream, []))
        if device == "cuda":
            torch.cuda.synchronize()
        for _ in range(4 * 3):
            for passes, stream, frames in videos:
                with torch.cuda.stream(stream) if stream is not None else nullcontext():
                    done = next(passes)
                    frames += [done.x0] * done.clean
        if device == "cuda":
            torch.cuda.synchronize()
        assert session.replays > 12
        for (_, _, frames), wanted in zip(videos, expected, strict=True):
            assert relative(torch.cat(frames, dim=2), wanted) < 1e-4


@contextmanager
def never_waiting(device):
    """On the CPU, where nothing waits, `test_captured.py` has passes whose tensors refuse to be read."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("cudagraphs", "device", "inner"),
    [
        pytest.param(True, "cpu", "eager", marks=pytest.mark.shares_graphs),
        pytest.param(False, "cuda", "inductor", marks=GPU),
        pytest.param(True, "cuda", "inductor", marks=GPU),
    ],
    ids=["cpu", "launched", "captured"],
)
def test_a_steady_pass_never_waits_for_the_device(cudagraphs, device, inner):
    model = wan(sink_size=1, num_layers=2).to(device)
    config = model.config
    with torch.no_grad(), headforce.prepare(model, MOVING) as session:
        session.compile(inner=inner, blocks=blocks_on(device), cudagraphs=cudagraphs)
        rollout, context = rollout_of(model, device)
        for _ in range(2):  # the second video captures what the first has run
            rollout.generate(context, [3] * 6, seed=0)
        passes = rollout.passes(context, [3] * 8, seed=0)
        for _ in range(3 * 5):
            next(passes)
        latents = torch.randn(1, config.channels, 3, config.latent_height, config.latent_width, device=device)
        times = [torch.full((1, 3), level, device=device) for level in (1000.0, 625.0, 0.0)]
        caches = {"kv_cache": rollout.kv_cache, "crossattn_cache": rollout.crossattn_cache}
        with never_waiting(device):
            for chunk in (5, 6):  # each begins with a commit, an eviction and new tables
                for t in times:
                    model(latents, t, context, **caches, current_start=chunk * 3 * config.tokens_per_frame)
        assert (session.replays > 0) == cudagraphs
