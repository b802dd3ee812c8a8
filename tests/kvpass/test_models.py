"""Whole models: every layer's site in every graph of a rollout, and its expressions against the eager indices."""

import dataclasses
import math
import os
import sys
import types

import pytest
import torch

from examples.causal_wan import TINY, CausalWan, Rollout, init_random
from headforce.testing.recording import Recorder

FRAMES, SINK, CHUNK = 6, 1, 3


def expected_rows(chunks, passes, tokens):
    """(append, read, roll source, roll target) of every pass: fill two chunks, then evict three frames per chunk."""
    out = []
    for chunk in range(chunks):
        for step in range(passes):
            end = min((chunk + 1) * CHUNK, FRAMES)
            rolls = step == 0 and (chunk + 1) * CHUNK > FRAMES
            roll = ((SINK + CHUNK) * tokens, FRAMES * tokens), (SINK * tokens, CHUNK * tokens)
            append = (end - CHUNK) * tokens, end * tokens
            out.append((append, (0, end * tokens), *(roll if rolls else (None, None))))
    return out


def check(recorder, layers, chunks, passes, tokens, path, rope, cache_dtype):
    """Every layer is found once in every graph, nothing is refused, and every pass has the expected rows."""
    assert recorder.codes == []
    for report in recorder.reports:
        assert [site.name for site in report.found] == [path.format(i) for i in range(layers)]
        assert [r.code for r in report.excluded] == ["HF-CROSS"] * layers
        for site in report.found:
            form = site.rope
            assert form.kind == rope
            turning = form.pairs - 2 * (form.pairs // 3)
            assert form.temporal == (0, turning)
            assert [its.count for its in form.temporal_columns] == [turning, turning]
            assert site.cache.dtype == cache_dtype
            assert report.inputs[site.cache.k_input.name] == report.inputs[site.cache.v_input.name].replace(
                "'v'", "'k'"
            )
    for layer in range(layers):
        calls = [c for c in recorder.calls if c["site"] == path.format(layer)]
        rows = [(c["append"], c["read"], c.get("source"), c.get("target")) for c in calls]
        assert rows == expected_rows(chunks, passes, tokens)
        assert [c["start"] for c in calls] == [c["key_start"] for c in calls]
        assert [c["start"] for c in calls] == [i // passes * CHUNK for i in range(chunks * passes)]
        assert {(c["frames"], c["tokens"]) for c in calls} == {(CHUNK, tokens)}
        assert {(c["sink"], c["window"]) for c in calls if "source" in c} == {(SINK * tokens, (FRAMES - SINK) * tokens)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "chunks", "batch", "dtype", "dynamic"),
    [(2, 4, 1, torch.float32, None), (1, 3, 2, torch.bfloat16, None), (1, 3, 1, torch.bfloat16, True)],
    ids=["fp32", "batch2-bf16", "dynamic"],
)
def test_causal_wan(layers, chunks, batch, dtype, dynamic):
    config = dataclasses.replace(TINY, num_layers=layers, local_attn_size=FRAMES, sink_size=SINK)
    model = init_random(CausalWan(config), seed=0, peaked=True).to(dtype)
    recorder = Recorder()
    rollout = Rollout(torch.compile(model, backend=recorder, dynamic=dynamic, fullgraph=True), config, (1000.0,))
    context = torch.randn(batch, config.text_len, config.text_dim).to(dtype)
    rollout.generate(context, [CHUNK] * chunks, seed=0)
    check(recorder, layers, chunks, 2, config.tokens_per_frame, "blocks.{}.self_attn", "interleaved", dtype)


def test_one_block_at_a_time():
    """Blocks compiled by themselves share their graphs; the site has the module's own name."""
    config = dataclasses.replace(TINY, num_layers=2, local_attn_size=FRAMES, sink_size=SINK)
    model = init_random(CausalWan(config), seed=0, peaked=True)
    recorder = Recorder()
    for block in model.blocks:
        block.compile(backend=recorder, fullgraph=True)
    Rollout(model, config, (1000.0,)).generate(torch.randn(1, config.text_len, config.text_dim), [CHUNK] * 2, seed=0)
    assert recorder.codes == []
    assert {site.name for report in recorder.reports for site in report.found} == {"self_attn"}
    assert {len(report.found) for report in recorder.reports} == {1}


GRID = (4, 6)
TOKENS = GRID[0] * GRID[1]


class Index:
    """A cache index that holds a Python int, where the model keeps a tensor of one element."""

    def __init__(self, value=0):
        self.value = value

    def item(self):
        return self.value

    def fill_(self, value):
        self.value = value
        return self


class Sizes:
    """Grid sizes whose `tolist` needs no tensor."""

    def __init__(self, rows):
        self.rows = rows

    def tolist(self):
        return self.rows


@pytest.fixture(scope="module")
def self_forcing():
    """The unmodified model, with the five functions replaced that keep it from being one graph."""
    checkout = os.environ.get("HEADFORCE_SELF_FORCING")
    if not checkout:
        pytest.skip("HEADFORCE_SELF_FORCING names no checkout of guandeh17/Self-Forcing")

    monkeypatch = pytest.MonkeyPatch()

    def module(name, **content):
        made = types.ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    try:
        import diffusers  # noqa: F401
        import einops  # noqa: F401
    except ImportError:  # only base classes and a decorator are used of them
        module("diffusers")
        module("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda f: f)
        module("diffusers.models")
        module("diffusers.models.modeling_utils", ModelMixin=torch.nn.Module)
        module("einops", repeat=None)
    module("wan", __path__=[f"{checkout}/wan"])
    module("wan.modules", __path__=[f"{checkout}/wan/modules"])
    import wan.modules.attention as attention
    import wan.modules.causal_model as causal
    import wan.modules.model as model

    rope = causal.causal_rope_apply
    monkeypatch.setattr(model, "flash_attention", lambda q, k, v, k_lens=None, **_: attention.attention(q, k, v))
    monkeypatch.setattr(
        causal,
        "causal_rope_apply",
        lambda x, sizes, freqs, start_frame=0: rope(
            x, Sizes([[x.shape[1] // TOKENS, *GRID]] * x.shape[0]), freqs, start_frame
        ),
    )
    prod = math.prod
    monkeypatch.setattr(
        causal,
        "math",
        types.SimpleNamespace(prod=lambda n: Index(TOKENS) if torch.is_tensor(n) else prod(n), ceil=math.ceil),
    )
    monkeypatch.setattr(
        causal.CausalWanModel,
        "unpatchify",
        lambda self, x, sizes: [
            u.reshape(CHUNK, *GRID, 1, 2, 2, self.out_dim)
            .permute(6, 0, 3, 1, 4, 2, 5)
            .reshape(self.out_dim, CHUNK, GRID[0] * 2, GRID[1] * 2)
            for u in x
        ],
    )
    yield causal.CausalWanModel
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.split(".")[0] == "wan"]:
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_self_forcing(self_forcing, dynamic, autocast):
    layers, dtype = 2, torch.float32 if autocast else torch.bfloat16
    torch.manual_seed(0)
    model = self_forcing(
        model_type="t2v", dim=96, ffn_dim=128, num_heads=4, num_layers=layers, text_dim=32, freq_dim=64, in_dim=4,
        out_dim=4, text_len=8, local_attn_size=FRAMES, sink_size=SINK,
    ).eval().to(dtype)  # fmt: skip
    for block in model.blocks:
        block.self_attn.max_attention_size = FRAMES * TOKENS

    def caches(rows, **more):
        shape = (1, rows, 4, 24)
        return [
            {"k": torch.zeros(shape, dtype=dtype), "v": torch.zeros(shape, dtype=dtype), **more} for _ in range(layers)
        ]

    kv = [{**c, "global_end_index": Index(), "local_end_index": Index()} for c in caches(FRAMES * TOKENS)]
    cross = caches(8, is_init=False)
    recorder = Recorder()
    compiled = torch.compile(model, backend=recorder, dynamic=dynamic)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for step in range(8):
            compiled(
                torch.randn(1, 4, CHUNK, 8, 12).to(dtype), torch.ones(1, CHUNK) * 500, [torch.randn(8, 32).to(dtype)],
                32760, kv_cache=kv, crossattn_cache=cross, current_start=step // 2 * CHUNK * TOKENS, cache_start=0,
            )  # fmt: skip
    assert len(recorder.reports) <= 5
    check(recorder, layers, 4, 2, TOKENS, "blocks.{}.self_attn", "complex", dtype)
    assert {site.dtype for report in recorder.reports for site in report.found} == {torch.bfloat16}
