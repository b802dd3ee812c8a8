"""A compiled model whose attention is the kernel, in the interpreter, under a policy that moves frames."""

import pytest
import torch

import headforce
from headforce.lowering import attention, codegen, rotate_and_write
from headforce.policy import Policy
from tests.kvpass.conftest import videos, wan
from tests.kvpass.oracle_model import oracle_model
from tests.kvpass.test_owned_identity import relative

POLICY = Policy.loads("""
    headforce: 0
    classes: {near: 'sink(1)@collapse(3) | window(1)', far: window(2), none: drop()}
    default: near
    heads: {0: {far: [0, 3], none: [1]}}
    """)
STILL = Policy.loads("""
    headforce: 0
    classes: {near: window(1), far: span(5)}
    default: near
    heads: {0: {far: [0, 3]}}
    """)


@pytest.fixture
def kernels(monkeypatch):
    """The kernels that are launched, by name and spec."""
    seen = []

    def kernel_of(name, spec):
        seen.append((name, spec))
        return codegen.kernel_of(name, spec)

    for module in (attention, rotate_and_write):
        monkeypatch.setattr(module, "kernel_of", kernel_of)
    return seen


@pytest.mark.parametrize(
    ("mode", "policy", "rotation", "inner"),
    [
        pytest.param("owned", POLICY, "interleaved", "inductor", id="owned, moves", marks=pytest.mark.slow),
        pytest.param("owned", STILL, None, "eager", id="owned, still"),
        pytest.param("view", POLICY, "interleaved", "eager", id="view, moves"),
        pytest.param("view", STILL, None, "eager", id="view, still", marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager_masked_to_the_oracle(mode, policy, rotation, inner, kernels):
    """A policy that moves no frame runs on a kernel without rotation; RoPE and page write are one launch in pages."""
    torch._dynamo.reset()
    model = wan(sink_size=1)
    expected = videos(oracle_model(model, policy), model.config, ([3] * 3,))
    with headforce.prepare(model, policy=policy, mode=mode, verify="plan") as session:
        session.compile(blocks="blocks", inner=inner, target="triton")
        result = videos(model, model.config, ([3] * 3,))
        assert session.launches == [9]
    assert relative(result[0], expected[0]) < 1e-5
    names = [name for name, _ in kernels]
    assert names == ["rotate_and_write", "ragged_attention"] * 9 if mode == "owned" else ["ragged_attention"] * 9
    assert {spec.rotation for name, spec in kernels if name == "ragged_attention"} == {rotation}
