"""A compiled model on a GPU: shells of CUDA memory, tables uploaded there, the Triton target. `make gpu` runs these.

The same tests run on the CPU, block by block and with the compiler inside that costs nothing, so that a test which has
come to say something wrong is found before a GPU is there.
"""

import pytest
import torch

import headforce
from examples.causal_wan import Rollout
from headforce.policy import Policy, parse_rule

from .conftest import text, wan
from .oracle_model import oracle_model
from .test_owned_identity import relative

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
WAYS = [
    pytest.param("cpu", "eager", marks=pytest.mark.shares_graphs),
    pytest.param("cuda", "eager", marks=GPU),
    pytest.param("cuda", "inductor", marks=GPU),
]
"""Devices, and compilers inside headforce."""

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


def blocks_on(device):
    """Layers share their graphs on the CPU, where tracing is most of the time; on a GPU the model is one graph."""
    return "blocks" if device == "cpu" else None


def video(model, device):
    rollout = Rollout(model, model.config, timesteps=(1000.0, 625.0))
    return rollout.generate(text(model.config).to(device), [3] * 5, seed=0).cpu()


@pytest.mark.parametrize(("device", "inner"), WAYS)
@pytest.mark.parametrize("mode", ["owned", "view"])
@pytest.mark.parametrize("policy", [NATIVE, MOVING], ids=["native", "moving"])
def test_compiled_equals_eager_masked_to_the_oracle(policy, mode, device, inner):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = wan(sink_size=1, num_layers=2).to(device)
    expected = video(model if policy is NATIVE else oracle_model(model, policy), device)
    with headforce.prepare(model, policy=policy, mode=mode) as session:
        session.compile(inner=inner, blocks=blocks_on(device))
        result = video(model, device)
        assert session.launches == [15, 15]
    assert relative(result, expected) < 1e-4
