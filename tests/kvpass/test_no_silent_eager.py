"""A prepared model that runs without our code must say so: its cache is a shell, and its output would be garbage."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import headforce
from headforce import HeadforceError
from headforce.policy import Policy

from .conftest import videos, wan

A = Policy.loads("headforce: 0\nclasses: {a: window(1)}\ndefault: a")
EAGER = {"inner": "eager"}


def test_calling_the_original_module() -> None:
    model = wan()
    with headforce.prepare(model, policy=A), pytest.raises(HeadforceError, match="HF-EAGER"):
        videos(model, model.config, ([3],))


def test_force_eager() -> None:
    model = wan()
    with headforce.prepare(model, policy=A):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        videos(compiled, model.config, ([3],))
        with torch.compiler.set_stance("force_eager"), pytest.raises(HeadforceError, match="HF-EAGER"):
            videos(compiled, model.config, ([3],))


def test_recompile_limit() -> None:
    model = wan()
    with headforce.prepare(model, policy=A), torch._dynamo.config.patch(recompile_limit=1):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        with pytest.raises(HeadforceError, match="HF-EAGER"):
            videos(compiled, model.config, ([3] * 3,))


def test_a_refusal_arrives_also_when_errors_are_suppressed() -> None:
    model = wan()
    with headforce.prepare(model, policy=A), torch._dynamo.config.patch(suppress_errors=True):
        compiled = torch.compile(model, backend="headforce", options={**EAGER, "inner": "no-such-compiler"})
        with pytest.raises(HeadforceError, match="HF-OPTION"):
            videos(compiled, model.config, ([3],))


def test_an_inner_compiler_that_fails_is_not_swallowed() -> None:
    def broken(module: torch.fx.GraphModule, inputs: list[object]) -> object:
        raise RuntimeError("broken on purpose")

    torch._dynamo.register_backend(broken, name="headforce_test_broken")
    model = wan()
    with headforce.prepare(model, policy=A), torch._dynamo.config.patch(suppress_errors=True):
        compiled = torch.compile(model, backend="headforce", options={"inner": "headforce_test_broken"})
        with pytest.raises(HeadforceError, match=r"HF-EAGER|HF-CACHE-UNREAD"):
            videos(compiled, model.config, ([3],))


def test_gradients_are_refused() -> None:
    model = wan()
    with headforce.prepare(model, policy=A):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        config = model.config
        from examples.causal_wan import allocate_crossattn_cache, allocate_kv_cache

        with pytest.raises(HeadforceError, match="HF-GRAD"):
            compiled(
                torch.zeros(1, config.channels, 3, config.latent_height, config.latent_width),
                torch.zeros(1, 3),
                torch.zeros(1, config.text_len, config.text_dim),
                kv_cache=allocate_kv_cache(config),
                crossattn_cache=allocate_crossattn_cache(config),
            )


def test_disabled_dynamo() -> None:
    code = """
        import torch
        import headforce
        from headforce.policy import Policy
        from tests.kvpass.conftest import videos, wan

        model = wan()
        headforce.prepare(model, policy=Policy({}))
        try:
            videos(torch.compile(model, backend="headforce"), model.config, ([3],))
        except headforce.HeadforceError as error:
            print(error.code)
        """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.split() == ["HF-EAGER"], result.stderr
