"""benchmarks/rollout.py without a GPU: what runs is checked, what is wrong is called wrong, and no time is made up."""

from __future__ import annotations

import json

import pytest
import torch

from headforce.kvpass.session import Session
from headforce.presets import make_preset
from tests.benchmark_scripts import load

rollout, side_by_side, grouped, parts, first_chunk, report = map(
    load, ("rollout", "side_by_side", "grouped", "parts", "first_chunk", "rollout_report")
)


@pytest.fixture(autouse=True)
def _as_it_was():
    threads, config = torch.get_num_threads(), torch._dynamo.config
    limits = config.recompile_limit, config.accumulated_recompile_limit
    torch._dynamo.reset()
    yield
    config.recompile_limit, config.accumulated_recompile_limit = limits
    torch._dynamo.reset()
    torch.set_num_threads(threads)


def dry_run(folder, *names, options=()):
    """(exit status, variants) of a dry run in this process, of the variants of these names."""
    out = folder / "rollout.json"
    only = [word for name in names for word in ("--only", name)]
    status = rollout.main(["--dry-run", "--frames", "21", "--out", str(out), *options, *only])
    (case,) = json.loads(out.read_text())["cases"]
    return status, case["variants"]


@pytest.mark.slow
def test_peers_and_captured_passes_are_right_and_get_no_times(tmp_path, capsys):
    names = ("a0", *(f"grouped {preset}" for preset in side_by_side_presets()), "headforce forcing_kv sdpa graphs")
    status, found = dry_run(tmp_path, *names)
    assert status == 0
    assert tuple(found) == names
    for name, result in found.items():
        assert result["state"] == "ok", (name, result)
        assert result["error"] <= result["allowed"] == 1e-4
        assert result["chunk_ms"] is result["fps"] is result["parts"] is None
        # A single frame missing from a single head of three times four would show a hundred times over.
        assert result["control"] is None or result["control"] > 100 * result["allowed"]
    ours, theirs = found[names[-1]], found["grouped forcing_kv"]
    assert ours["held_bytes"] == theirs["held_bytes"] < found["a0"]["held_bytes"] / 3
    assert ours["difference"] < 1e-4  # the whole model, against the grouped calls
    assert (ours["later_graphs"], ours["replays"] > 50) == (0, True)
    assert (tmp_path / "rollout.png").exists()
    rows = [line for line in capsys.readouterr().out.splitlines() if "dry 21 frames" in line]
    assert len(rows) == len(names)


@pytest.mark.slow
def test_heads_that_are_classified_on_the_way_are_checked_by_the_classes_they_got(tmp_path, monkeypatch):
    labels, seen = Session.labels.fget, []

    def watched(session):
        seen.append(labels(session))
        return seen[-1]

    monkeypatch.setattr(Session, "labels", property(watched))
    name = "headforce dummy_forcing online sdpa"
    status, found = dry_run(tmp_path, name, options=["--blocks"])
    assert (status, found[name]["state"], found[name]["later_graphs"]) == (0, "ok", 0)
    assert found[name]["error"] <= found[name]["allowed"] == 1e-4 < found[name]["control"] / 100
    assert seen[:2] == [None, None]  # up to the chunk that is measured
    guess = make_preset("dummy_forcing").classify.guess(3, seen[-1].heads)
    assert list(map(list, seen[-1].layers)) != guess  # so that an oracle that was not told would disagree


def side_by_side_presets():
    return tuple(rollout.COUNTS)


def test_a_wrong_variant_is_called_wrong(tmp_path, monkeypatch, capsys):
    attend = grouped.attend
    monkeypatch.setattr(grouped, "attend", lambda q, k, v: attend(q, k[:, 24:], v[:, 24:]))  # forgets a frame
    status, found = dry_run(tmp_path, "grouped dummy_forcing")
    assert status == 1
    assert found["grouped dummy_forcing"]["state"] == "wrong"
    assert "WRONG: error" in capsys.readouterr().out


def test_a_variant_that_breaks_on_the_way_is_out_and_says_why(tmp_path, monkeypatch):
    advance = grouped.GroupedAttention._advance

    def breaks(self, start, *rest):
        if start == 3 and self.decisions.policy.layers == 3 and breaks.checked:
            raise IndexError("no such frame\nand more")
        breaks.checked |= start == 24  # the last chunk of the check
        advance(self, start, *rest)

    breaks.checked = False
    monkeypatch.setattr(grouped.GroupedAttention, "_advance", breaks)
    status, found = dry_run(tmp_path, "a0", "grouped dummy_forcing")
    assert (status, found["a0"]["state"]) == (1, "ok")
    broken = found["grouped dummy_forcing"]
    assert (broken["state"], broken["reason"]) == ("failed", "IndexError: no such frame")
    assert broken["error"] is not None
    assert broken["held_bytes"] is None


@pytest.mark.parametrize(("during", "held"), [("run", False), ("_differences", True)])
def test_a_run_that_is_cut_off_leaves_what_was_known(during, held, tmp_path, monkeypatch):
    """Behind the checks, and behind the measured chunks."""

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side.Rollouts, during, cut_off)
    with pytest.raises(KeyboardInterrupt):
        dry_run(tmp_path, "a0", "grouped dummy_forcing")
    left = json.loads((tmp_path / "rollout.json").read_text())
    (case,) = left["cases"]
    assert not left["ok"]
    assert [result["state"] for result in case["variants"].values()] == ["ok", "ok"]
    assert all(result["error"] is not None for result in case["variants"].values())
    assert all((result["held_bytes"] is not None) == held for result in case["variants"].values())


@pytest.mark.slow
def test_without_references_variants_are_still_compared(tmp_path):
    names = ("grouped dummy_forcing", "headforce dummy_forcing sdpa")
    status, found = dry_run(tmp_path, *names, options=["--unchecked", "--blocks"])
    assert status == 0
    assert [found[name]["error"] for name in names] == [None, None]
    assert found[names[1]]["difference"] < 1e-4


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rollout.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_ratios_follow_from_times():
    variants = rollout.all_variants(["triton"])
    times = {"a0": 600.0, "a1": 500.0, "grouped forcing_kv": 300.0, "headforce forcing_kv triton": 200.0}
    results = {v.name: {"chunk_ms": times.get(v.name), "over": {}} for v in variants}
    over = report.compare(results, variants)["headforce forcing_kv triton"]["over"]
    assert over == {"a0": 3.0, "a1": 2.5, "b": None, "c": 1.5}
    assert report.compare(results, variants)["headforce dummy_forcing triton"]["over"]["a0"] is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ragged_attention", "attention"),
        ("hopper_attention", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("fmha_cutlassF_f32_aligned_64x128_rf_sm80", "attention"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "linear"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "linear"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "linear"),
        ("triton_red_fused_native_layer_norm_add_mul_3", "rest"),
        # Inductor names what it fuses after its operators, and after those whose results it only lays out anew.
        ("triton_poi_fused__scaled_dot_product_cudnn_attention_transpose_view_7", "rest"),
        ("triton_poi_fused_addmm_gelu_view_2", "rest"),
        ("triton_per_fused_add_addmm_mul_native_layer_norm_4", "rest"),
        ("triton_tem_fused_addmm_gelu_view_5", "linear"),
        ("triton_tem_fused_bmm_0", "linear"),
        ("triton_tem_fused_flex_attention_1", "attention"),
        ("rotate_and_write", "rest"),
        ("void at::native::vectorized_elementwise_kernel<4>", "rest"),
    ],
)
def test_kernels_belong_to_the_part_that_their_name_says(name, part):
    assert parts.part_of(name) == part


def test_time_in_which_nothing_ran_is_the_hosts():
    work = [("ragged_attention", 0.0, 1000.0), ("nvjet", 500.0, 2000.0), ("copy", 3000.0, 3500.0)]
    assert parts.times_by_part(work) == {"attention": 1.0, "linear": 1.5, "rest": 0.5}
    assert parts.busy(work) == 2.5


def test_variants_that_do_not_fit_together_run_one_after_the_other():
    variants = rollout.all_variants(["triton"])
    config = rollout.config_of(rollout.RESOLUTIONS[2])
    dense = variants[0].cache_bytes(config, 2)
    assert dense == pytest.approx(29.4 * 2**30, rel=0.01)  # as published for 1080p
    found = side_by_side.batches(variants, config, 2, 2.5 * dense)
    assert [variant for batch in found for variant in batch] == variants
    assert len(found[0]) == 2
    assert all(sum(v.cache_bytes(config, 2) for v in batch) <= 2.5 * dense for batch in found)
    assert side_by_side.batches(variants, config, 2, 1.0) == [[v] for v in variants]


def test_a_child_that_dies_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(first_chunk.sys, "executable", "/bin/false")
    first, second = first_chunk.twice("rollout.py", ["--dry-run", "--first-chunk", "a0"])
    assert first == second
    assert (first["state"], first["seconds"]) == ("failed", None)
    assert "exit status 1" in first["reason"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("headforce forcing_kv triton", ["headforce forcing_kv triton"]),
        ("headforce forcing_kv triton graphs", ["headforce forcing_kv triton graphs"]),
        ("headforce dense", ["headforce dense triton", "headforce dense triton graphs"]),
        ("b", ["b"]),
    ],
)
def test_a_name_alone_is_one_variant(only, names):
    arguments = rollout.parsed(["--target", "triton", "--only", only])
    assert [variant.name for variant in rollout.chosen(arguments)] == names
