"""A second process finds what the first has compiled: in Inductor's cache, and in AOTAutograd's in front of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from headforce.kvpass.inner import _our_operators, compile_inner
from headforce.kvpass.options import Options
from headforce.kvpass.torch_private import cache_key_tag

ROOT = Path(__file__).resolve().parents[2]
CODE = """
    import torch
    from torch._dynamo.utils import counters

    import headforce
    from headforce.policy import Policy
    from tests.kvpass.conftest import text, wan
    from examples.causal_wan import Rollout

    model = wan()
    policy = Policy.loads("headforce: 0\\nclasses: {a: window(1), b: sink(1)}\\ndefault: a\\nheads: {0: {b: [1]}}")
    with headforce.prepare(model, policy=policy) as session:
        session.compile(blocks="blocks")
        next(Rollout(model, model.config, (1000.0,)).passes(text(model.config), [3], 0))
        assert session.report.count("rewritten") == session.report.graphs == 1
    inductor, aot = counters["inductor"], counters["aot_autograd"]
    print(inductor["fxgraph_cache_hit"], inductor["fxgraph_cache_miss"])
    print(aot["autograd_cache_hit"], aot["autograd_cache_miss"], aot["autograd_cache_bypass"])
    """


@pytest.mark.slow
def test_a_second_process_hits_the_cache(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run() -> list[int]:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CODE)], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return [int(n) for n in done.stdout.split()]

    hits, misses, *traced = run()
    assert hits == 0
    assert misses > 0
    assert traced == [0, misses, 0]
    assert run() == [misses, 0, misses, 0, 0]  # not even traced again


def test_what_is_cached_has_the_tag_of_our_operators_beside_the_users():
    settings = torch.compiler.config
    with settings.patch(cache_key_tag="mine"):
        with cache_key_tag(_our_operators()):
            assert settings.cache_key_tag == f"mine {_our_operators()}"
        assert settings.cache_key_tag == "mine"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._inductor.compile_fx.compile_fx", lambda *_, **__: seen.append(settings.cache_key_tag))
        compile_inner(torch.fx.symbolic_trace(torch.nn.Identity()), [], Options())
    assert seen == [_our_operators()]
