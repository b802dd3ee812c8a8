"""benchmarks/cpu.py: FLOPs that are counted, headforce's own share, and a run of its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from .benchmark_scripts import load
from .test_rollout_benchmark import _as_it_was  # noqa: F401  the fixture

cpu, overhead, sides, wan = map(load, ("cpu", "overhead", "sides", "wan"))
CPU, FLOAT = torch.device("cpu"), torch.float32


@pytest.fixture
def small():
    """A model of 3 layers with 4 heads, and what it takes to run it."""
    config = replace(cpu.config_of(3, tiny=True), **cpu.SMALL)
    best, flash = sides.backends(CPU, FLOAT, config.head_dim)
    return wan.make_model(config, FLOAT, CPU), sides.Settings(CPU, "eager", best, flash)


def frames_of(preset, config, reads):
    """Frames that all heads read together in a steady chunk, by the published number of each class."""
    policy = sides.bound_policy(preset, config)
    return sum(reads[kind] for of_layer in policy.classes for kind in of_layer)


@pytest.mark.parametrize(
    ("preset", "reads"),
    [
        ("forcing_kv", {"static": 5, "dynamic": 6, "ungrouped": 5}),
        ("dummy_forcing", {"sink": 4, "neighbor": 6, "dummy": 4}),
    ],
)
def test_grouped_calls_read_as_many_rows_as_published(preset, reads, small):
    model, settings = small
    pairs = cpu.frames_read(model, preset, settings)
    assert pairs == 3 * frames_of(preset, model.config, reads)


def test_flops_are_those_of_the_layers_and_of_the_pairs(small):
    model, settings = small
    config = model.config
    counted = cpu.flops(config, model, settings)
    tokens, heads, dim = config.tokens_per_frame, config.num_layers * config.num_heads, config.dim
    pair = 4 * config.head_dim * tokens**2
    difference = counted[sides.DENSE] - counted["dummy_forcing"]
    assert difference == pair * (heads * 3 * 21 - cpu.frames_read(model, "dummy_forcing", settings))
    rows = 3 * tokens
    # Of a layer: q, k, v, o and the feed-forward network; q, o and the products of cross-attention. k and v of the text
    # are computed in the first pass only, which is the one that is counted.
    layer = 2 * rows * dim * (6 * dim + 2 * config.ffn_dim)
    layer += 4 * config.text_len * dim**2 + 4 * rows * config.text_len * dim
    linear = counted[sides.DENSE] - pair * heads * 3 * 21
    outside = linear - config.num_layers * layer
    assert 0 < outside < layer  # embeddings and the head


def test_time_inside_belongs_to_who_spends_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overhead.time, "thread_time", lambda: now[0])
    watch = overhead.Overhead()

    def spend(seconds, inside=None):
        def run():
            now[0] += seconds
            if inside:
                inside()

        return run

    attention = watch.others(spend(5.0))
    operator = watch.ours("op", spend(0.002, attention))
    wrapper = watch.ours("wrapper", spend(0.003, watch.others(spend(7.0, operator))))
    wrapper()
    wrapper()
    assert watch.taken() == pytest.approx({"hooks": 0.0, "wrapper": 6.0, "op": 4.0})
    assert set(watch.taken().values()) == {0.0}


def test_what_is_watched_is_given_back():
    from headforce.kvpass.session import Session
    from headforce.kvpass.site_graph import SiteGraph
    from headforce.lowering.targets import find_target

    def all_of_it():
        return (Session._before, Session._after, SiteGraph.__call__, SiteGraph._variant, find_target("sdpa"))

    before = all_of_it()
    with overhead.watched():
        assert not set(before) & set(all_of_it())
    assert all_of_it() == before


@pytest.mark.slow
def test_a_run_of_a_tiny_model(tmp_path, monkeypatch, capsys):
    chosen = [cpu.dense_eager("dense eager"), cpu.grouped_eager("dummy_forcing"), cpu.ours("dummy_forcing", "sdpa")]
    monkeypatch.setattr(cpu, "variants_of", lambda: chosen)
    out = tmp_path / "cpu.json"
    assert cpu.main(["--tiny", "--inner", "eager", "--threads", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["variants"]
    dense, grouped, ours = (found[variant.name] for variant in chosen)
    assert dense["over_dense"] == dense["flops"] == 1
    assert grouped["flops"] == ours["flops"] > 1.5
    assert ours["share"] == pytest.approx(ours["over_dense"] / ours["flops"])
    assert set(ours["ours_by_part"]) == set(overhead.PARTS)
    assert all(0 < share < 1 for share in ours["ours_by_part"].values())
    assert "ours" not in grouped
    *rows, caption = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 2 + len(chosen)
    assert f"torch {torch.__version__}" in caption
    assert out.with_suffix(".png").exists()
