"""A prepared model that runs without our code must say so.

In owned mode its cache is a shell, and its output would be garbage: an error. In view mode the model has run as it is,
without its policy: a miss, which the session counts for every layer and pass.
"""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import headforce
from examples.causal_wan import TINY, CausalWan
from examples.one_call import first_chunk
from headforce import HeadforceError
from headforce.kvpass import session as session_file
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


def test_recompile_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan()
    monkeypatch.setattr(session_file, "GRAPHS", 1)
    with headforce.prepare(model, policy=A), torch._dynamo.config.patch(recompile_limit=1):
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        with pytest.raises(HeadforceError, match="HF-EAGER"):
            videos(compiled, model.config, ([3] * 3,))


@pytest.mark.slow
def test_a_prepared_model_may_have_more_graphs_than_others() -> None:
    """As chunks of another size have graphs of their own."""
    model = wan()
    with headforce.prepare(model, policy=A) as session, torch._dynamo.config.patch(recompile_limit=1):
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([1, 3],))
        assert session.report.graphs > 1
        assert torch._dynamo.config.recompile_limit == 1


class Nothing(CausalWan):
    """A model whose callers want the caches alone."""

    @functools.wraps(CausalWan.forward)
    def forward(self, *args: object, **kwargs: object) -> None:
        super().forward(*args, **kwargs)


def test_a_model_that_returns_nothing() -> None:
    model = Nothing(TINY).eval()
    _, args, kwargs = first_chunk()
    with headforce.prepare(model, policy=A) as session, torch.no_grad():
        torch.compile(model, backend="headforce", options=EAGER)(*args, **kwargs)
        assert session.launches == [1, 1]
        with pytest.raises(HeadforceError, match="HF-EAGER"):
            model(*args, **kwargs)


# --- past the model's own call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["owned", "view"])
def test_forward_is_not_the_model(mode: str) -> None:
    """Called or compiled, whether or not the caches are a stream's already."""
    model, args, kwargs = first_chunk()
    with headforce.prepare(model, policy=A, mode=mode) as session, torch.no_grad():
        compiled = torch.compile(model.forward, backend="headforce", options=EAGER)
        for call in (model.forward, compiled):
            with pytest.raises(HeadforceError, match=r"HF-EAGER.*CausalWan\.forward"):
                call(*args, **kwargs)
        session.compile(inner="eager")
        model(*args, **kwargs)
        for call in (model.forward, compiled):
            with pytest.raises(HeadforceError, match=r"HF-EAGER.*CausalWan\.forward"):
                call(*args, **kwargs)
        assert session.launches == [1, 1]
        session.restore()
        assert "forward" not in vars(model)


@pytest.mark.parametrize("blocks", [None, "blocks"])
def test_that_forward_is_watched_costs_no_graphs(blocks: str | None) -> None:
    model = wan()
    with headforce.prepare(model, policy=A) as session:
        session.compile(blocks=blocks, inner="eager")
        videos(model, model.config, ([3],))
        assert session.report.graphs == 2  # the first pass computes the text
        assert not torch._dynamo.utils.counters["graph_break"]


def test_a_copy_of_a_prepared_model_is_its_own() -> None:
    model, other = wan(0), wan(1)
    expected = videos(other, model.config, ([3],))[0]
    with headforce.prepare(model, policy=A) as session:
        twin = copy.deepcopy(model)
        twin.load_state_dict(other.state_dict())
        assert torch.equal(videos(twin, model.config, ([3],))[0], expected)
        assert torch.equal(videos(twin.forward, model.config, ([3],))[0], expected)
        assert session.cache_sets == []


def test_a_forward_of_the_instance_is_kept() -> None:
    """Such as one that somebody compiled before, or put around the model's own."""
    model, args, kwargs = first_chunk()
    calls: list[int] = []
    own = model.forward

    @functools.wraps(own)
    def forward(*args: object, **kwargs: object) -> object:
        calls.append(0)
        return own(*args, **kwargs)

    model.forward = forward
    with headforce.prepare(model, policy=A) as session, torch.no_grad():
        session.compile(blocks="blocks", inner="eager")
        model(*args, **kwargs)
        with pytest.raises(HeadforceError, match="HF-EAGER"):
            model.forward(*args, **kwargs)
        assert len(calls) == 1
    assert model.forward is forward


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


@pytest.mark.slow
def test_disabled_dynamo() -> None:
    code = """
        import torch
        import headforce
        from headforce.policy import Policy
        from tests.kvpass.conftest import videos, wan

        for mode in ("owned", "view"):
            model = wan(num_layers=2)
            session = headforce.prepare(model, policy=Policy({}), mode=mode)
            try:
                videos(torch.compile(model, backend="headforce"), model.config, ([3],))
                print(session.misses)
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
    assert result.stdout.split() == ["HF-EAGER", "6"], result.stderr


# --- view mode --------------------------------------------------------------------------------------------------


def test_misses_of_the_original_module_and_of_force_eager() -> None:
    model = wan(num_layers=2)
    eager = videos(model, model.config, ([3] * 3,))
    with headforce.prepare(model, policy=A, mode="view") as session:
        assert torch.equal(videos(model, model.config, ([3] * 3,))[0], eager[0])
        assert (session.misses, session.launches) == (9 * 2, [0, 0])
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        with torch.compiler.set_stance("force_eager"):
            videos(compiled, model.config, ([3],))
        assert session.misses == 12 * 2
        videos(compiled, model.config, ([3],))
        assert (session.misses, session.launches) == (12 * 2, [3, 3])
        assert "24 misses" in str(session)


def test_misses_beyond_the_recompile_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan(num_layers=2)
    monkeypatch.setattr(session_file, "GRAPHS", 1)
    with (
        headforce.prepare(model, policy=A, mode="view") as session,
        torch._dynamo.config.patch(recompile_limit=1),
    ):
        videos(torch.compile(model, backend="headforce", options=EAGER), model.config, ([3] * 3,))
        assert session.misses + sum(session.launches) == 9 * 2
        assert session.misses


@pytest.mark.slow
def test_misses_when_the_inner_compiler_fails_and_errors_are_suppressed() -> None:
    def broken(module: torch.fx.GraphModule, inputs: list[object]) -> object:
        raise RuntimeError("broken on purpose")

    torch._dynamo.register_backend(broken, name="headforce_test_broken_view")
    model = wan(num_layers=2)
    eager = videos(model, model.config, ([3],))
    with (
        headforce.prepare(model, policy=A, mode="view") as session,
        torch._dynamo.config.patch(suppress_errors=True),
    ):
        options = {"inner": "headforce_test_broken_view"}
        with pytest.raises(HeadforceError, match="HF-CACHE-UNREAD"):  # Dynamo goes on with smaller functions
            videos(torch.compile(model, backend="headforce", options=options), model.config, ([3],))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="headforce", options={**options, "on_refuse": "warn"})
        assert torch.equal(videos(compiled, model.config, ([3],))[0], eager[0])
        assert session.misses == 3 * 2


@pytest.mark.slow
def test_passes_that_went_by_unseen_do_not_confuse_the_clock() -> None:
    """The cache rolls in an eager pass; the next compiled pass reads the right rows all the same."""
    model = wan(sink_size=1)
    policy = Policy.loads("headforce: 0\nclasses: {a: 'sink(1) | window(2)'}\ndefault: a")
    eager = videos(model, model.config, ([3] * 7,))  # the rule is what the model itself reads
    with headforce.prepare(model, policy=policy, mode="view", verify="plan") as session:
        compiled = torch.compile(model, backend="headforce", options=EAGER)
        calls = 0

        def switching(*args: object, **kwargs: object) -> torch.Tensor:
            nonlocal calls
            calls += 1
            # Chunks 0 to 3 compiled, the fifth eager (it evicts), then compiled again.
            return (model if 12 < calls <= 15 else compiled)(*args, **kwargs)

        result = videos(switching, model.config, ([3] * 7,))
        assert session.misses == 3
        assert session.launches == [18]
    assert torch.allclose(result[0], eager[0], rtol=0, atol=1e-5 * float(eager[0].abs().max()))
