"""CUDA graphs of whole passes, and passes that never wait for the device. `make gpu` runs these."""

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy, Warmup, parse_rule

from .conftest import text, wan
from .oracle_model import oracle_model
from .test_gpu import MOVING, NATIVE
from .test_owned_identity import relative

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Not from a file: reading one takes packages that the machine of `make gpu` may lack.
SHRINKING = Policy({"a": parse_rule("window(1)")}, "a", warmup=Warmup(3, parse_rule("window(9)")))


def rollout_of(model):
    return Rollout(model, model.config, timesteps=(1000.0, 625.0)), text(model.config).cuda()


@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize("policy", [NATIVE, MOVING, SHRINKING], ids=["native", "moving", "shrinking"])
def test_replays_equal_passes_that_run(policy, inner):
    """Over commits, evictions, pools that are laid out anew, and another video."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = wan(sink_size=1).cuda()
    reference, context = rollout_of(model if policy is NATIVE else oracle_model(model, policy))
    expected = reference.generate(context, [3] * 6, seed=0)
    with headforce.prepare(model, policy) as session:
        session.compile(inner=inner, cudagraphs=True)
        rollout, context = rollout_of(model)
        for _ in range(2):
            assert relative(rollout.generate(context, [3] * 6, seed=0), expected) < 1e-4
        assert session.launches == [36, 36]
        assert session.replays > 18


@pytest.mark.parametrize("cudagraphs", [False, True], ids=["launched", "captured"])
def test_a_steady_pass_never_waits_for_the_device(cudagraphs):
    model = wan(sink_size=1).cuda()
    config = model.config
    with torch.no_grad(), headforce.prepare(model, MOVING) as session:
        session.compile(inner="inductor", cudagraphs=cudagraphs)
        rollout, context = rollout_of(model)
        for _ in range(2):  # the second video captures what the first has run
            rollout.generate(context, [3] * 6, seed=0)
        passes = rollout.passes(context, [3] * 8, seed=0)
        for _ in range(3 * 5):
            next(passes)
        latents = torch.randn(1, config.channels, 3, config.latent_height, config.latent_width, device="cuda")
        times = [torch.full((1, 3), level, device="cuda") for level in (1000.0, 625.0, 0.0)]
        caches = {"kv_cache": rollout.kv_cache, "crossattn_cache": rollout.crossattn_cache}
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for chunk in (5, 6):  # each begins with a commit, an eviction and new tables
                for t in times:
                    model(latents, t, context, **caches, current_start=chunk * 3 * config.tokens_per_frame)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (session.replays > 0) == cudagraphs
