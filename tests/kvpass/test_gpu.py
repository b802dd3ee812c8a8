"""A compiled model on a GPU: shells of CUDA memory, tables uploaded there, the Triton target. `make gpu` runs these."""

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy, parse_rule

from .conftest import text, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NATIVE = Policy({})
MOVING = Policy(
    {
        "near": parse_rule("sink(1)@collapse(3) | window(1)"),
        "far": parse_rule("window(2)"),
        "none": parse_rule("drop()"),
    },
    default="near",
    heads={1: {"far": (0, 3), "none": (1,)}},
)


def video(model, config):
    rollout = Rollout(model, config, timesteps=(1000.0, 625.0))
    return rollout.generate(text(config).cuda(), [3] * 5, seed=0).cpu()


@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize("mode", ["owned", "view"])
@pytest.mark.parametrize("policy", [NATIVE, MOVING], ids=["native", "moving"])
def test_compiled_equals_eager_masked_to_the_oracle(policy, mode, inner):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = wan(sink_size=1).cuda()
    expected = video(model if policy is NATIVE else oracle_model(model, policy), model.config)
    with headforce.prepare(model, policy=policy, mode=mode) as session:
        compiled = torch.compile(model, backend="headforce", options={"inner": inner})
        result = video(compiled, model.config)
        assert session.launches == [15, 15]
    assert relative(result, expected) < 1e-4
