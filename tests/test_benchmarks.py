"""`benchmarks/attention.py` without a GPU: the dry run, what it counts, and that it says so when something is wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask

from headforce.errors import HeadforceError
from headforce.lowering.targets import find_target
from headforce.policy import parse_rule
from tests.benchmark_scripts import load
from tests.interpreting import need_interpreter

ROOT = Path(__file__).resolve().parents[1]
PLANS = {
    "dense": {"all": 21},
    "dense@collapse": {"all": 21},
    "dense@clamp": {"all": 21},
    "dense@contiguous": {"all": 21},
    "4x21+8x6": {"far": 21, "near": 6},
    "4x21+8x6@collapse": {"far": 21, "near": 6},
    "half": {"far": 21, "near": 6},
    "half@collapse": {"far": 21, "near": 6},
    "forcing_kv": {"static": 5, "dynamic": 6},
    "forcing_kv@collapse": {"static": 5, "dynamic": 6},
    "pyramid": {"wave": 9, "anchor": 11, "veil": 8},
    "pyramid@collapse": {"wave": 9, "anchor": 11, "veil": 8},
}
"""Frames that a query of each class reads, as the papers count them."""

VARIANTS = {"math", "grouped", "flex", "varlen", "reference", "triton", "hopper", "sdpa"}


attention, clock, peers, plans = map(load, ("attention", "clock", "peers", "plans"))


@pytest.fixture(autouse=True)
def _as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def dry_run(folder, *arguments, interpret="0"):
    """(exit status, JSON, table) of the dry run in a process of its own."""
    out = folder / "attention.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/attention.py", "--dry-run", "--out", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ".", "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
    )
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return dry_run(tmp_path_factory.mktemp("dry"))


def in_process(folder, *arguments):
    """The same in this process, where functions can be replaced."""
    out = folder / "attention.json"
    status = attention.main(["--dry-run", "--out", str(out), *arguments])
    return status, {case["plan"]: case["variants"] for case in json.loads(out.read_text())["cases"]}


@pytest.mark.slow
def test_the_dry_run_has_every_plan_and_every_variant_and_all_checks_hold(run):
    status, report, _ = run
    assert status == 0
    assert report["ok"]
    assert [case["plan"] for case in report["cases"]] == list(PLANS)
    for case in report["cases"]:
        assert set(case["variants"]) == VARIANTS
        mapped = "@" in case["plan"]
        for name, result in case["variants"].items():
            refuses = name in ("varlen", "triton", "hopper") or (name == "flex" and mapped)
            assert result["state"] == ("refused" if refuses else "ok"), (case["plan"], name, result)
            assert bool(result["reason"]) == refuses
            assert refuses or result["error"] <= report["settings"]["tolerance"]
            assert result["ms"] is None
    assert report["machine"]["packages"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_table_has_a_row_for_everything_and_says_what_was_refused(run):
    _, report, table = run
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert len({len(row) for row in rows}) == 1
    found = {(row[0], row[2]): row[-1] for row in rows[2:]}
    assert found.keys() == {(case["case"], name) for case in report["cases"] for name in case["variants"]}
    assert found["tiny half", "hopper"].startswith("refused: HF-")
    assert found["tiny half@collapse", "flex"].startswith("refused: flex_attention cannot turn")


@pytest.mark.slow
def test_the_portable_kernel_is_checked_in_the_interpreter(tmp_path):
    need_interpreter()
    wanted = {"dense@clamp", "pyramid@collapse"}
    only = [word for name in wanted for word in ("--only", name)]
    status, report, _ = dry_run(tmp_path, *only, "--target", "triton", interpret="1")
    assert status == 0
    assert {case["plan"] for case in report["cases"]} == wanted
    for case in report["cases"]:
        assert case["variants"]["triton"]["state"] == "ok"


def test_the_rows_that_are_kept_are_those_of_the_policy(run):
    _, report, _ = run
    for case in report["cases"]:
        frames, tokens = PLANS[case["plan"]], case["shape"]["tokens"]
        assert {kind: len(heads) for kind, heads in case["heads"].items()}.keys() == frames.keys()
        read = sum(len(heads) * frames[kind] for kind, heads in case["heads"].items())
        assert case["pairs"] == read * 3 * tokens**2
        assert case["frames"] == pytest.approx(read / case["shape"]["heads"])
        assert case["tflop"] == pytest.approx(4e-12 * case["shape"]["dim"] * case["pairs"])
        for kind, rule in case["rules"].items():
            for query in plans.NOW.queries:
                assert len(parse_rule(rule).frames(plans.NOW, query)) + 3 == frames[kind]
            assert ("@" in rule) == ("@" in case["plan"])


@pytest.mark.parametrize(
    ("heads", "plan", "counts"),
    [
        (12, "4x21+8x6", {"far": 4, "near": 8}),
        (40, "4x21+8x6", {"far": 13, "near": 27}),
        (40, "half", {"far": 20, "near": 20}),
        (12, "forcing_kv", {"static": 4, "dynamic": 8}),
        (12, "pyramid@collapse", {"wave": 5, "anchor": 6, "veil": 1}),
        (40, "pyramid@collapse", {"wave": 17, "anchor": 19, "veil": 4}),
    ],
)
def test_heads_are_shared_out_by_weight(heads, plan, counts):
    members = plans.classes(next(p for p in plans.PLANS if p.name == plan), heads)
    assert {kind: len(its_heads) for kind, its_heads in members.items()} == counts
    assert sorted(head for its_heads in members.values() for head in its_heads) == list(range(heads))


@pytest.mark.parametrize("heads", [12, 40])
@pytest.mark.parametrize("plan", plans.PLANS, ids=lambda plan: plan.name)
def test_what_heads_read_fits_into_a_dense_cache_whose_last_frames_are_the_chunk(plan, heads):
    held = plans.frames_held(plans.parts_of(plans.policy_of(plan, heads)))
    assert len(held) == 21
    assert held[-3:] == tuple(plans.NOW.queries)


def test_plans_with_maps_read_what_their_plain_plans_read():
    by_name = {plan.name: plans.parts_of(plans.policy_of(plan, 12)) for plan in plans.PLANS}
    for plan in plans.PLANS:
        shifts = {shift for part in by_name[plan.name] for _, shift in part.keys}
        assert (shifts == {0}) == (plan.name == plan.plain)
        assert rows_read(by_name[plan.name]) == rows_read(by_name[plan.plain])
    # Every frame that is moved has a shift of its own.
    clamped = by_name["dense@clamp"][0]
    assert len({shift for _, shift in clamped.moved}) == len(clamped.moved) == 12


def rows_read(parts):
    return {
        (head, query): {frame for frame, _ in part.keys}
        for part in parts
        for head in part.heads
        for query in part.queries
    }


# --- what is wrong is called wrong -------------------------------------------------------------------------------


def forgets_a_run(query, key, value, reads, runs, *rope):
    reads = reads.clone()
    reads[0, 5] -= 1
    return find_target("reference")(query, key, value, reads, runs, *rope)


def turns_nothing(query, key, value, reads, runs, *rope):
    runs = runs.clone()
    runs[:, 2] = 0
    return find_target("reference")(query, key, value, reads, runs, *rope)


def writes_nothing(query, *others):
    return torch.empty_like(query).fill_(torch.nan)


@pytest.mark.parametrize(
    ("broken", "plan"),
    [(forgets_a_run, "pyramid"), (turns_nothing, "dense@contiguous"), (writes_nothing, "half")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_target_is_flagged(broken, plan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peers, "find_target", lambda name: broken if name == "broken" else find_target(name))
    status, cases = in_process(tmp_path, "--only", plan, "--target", "reference", "--target", "broken")
    assert status == 1
    assert cases[plan]["reference"]["state"] == "ok"
    assert cases[plan]["broken"]["state"] == "wrong"
    assert cases[plan]["broken"]["ms"] is None
    rows = [line for line in capsys.readouterr().out.splitlines() if f"{plan} " in line and "| broken" in line]
    assert len(rows) == 1
    assert "WRONG: relative error" in rows[0]


def test_to_refuse_is_allowed_and_to_break_is_not(tmp_path, monkeypatch):
    def refuses(*_):
        raise HeadforceError("HF-KERNEL", found="this", needed="that")

    def breaks(*_):
        raise IndexError("out of range\nand more")

    found = {"refuses": refuses, "breaks": breaks}
    monkeypatch.setattr(peers, "find_target", found.__getitem__)
    status, cases = in_process(tmp_path, "--only", "half@collapse", "--target", "refuses")
    assert (status, cases["half@collapse"]["refuses"]["state"]) == (0, "refused")
    status, cases = in_process(tmp_path, "--only", "half@collapse", "--target", "breaks")
    assert (status, cases["half@collapse"]["breaks"]["state"]) == (1, "failed")
    assert cases["half@collapse"]["breaks"]["reason"] == "IndexError: out of range"


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


# --- what only a GPU does, as far as it goes without one ----------------------------------------------------------


def test_a_run_is_queued_before_the_device_comes_to_it(monkeypatch):
    """The device spins for longer than the host takes, and then writes, in front of every run that is timed."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 40.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", log.append)
    timed = clock.Clock(torch.device("cpu"), budget=80)
    timed.on = True
    for seconds, least, most in ((0.001, 2.0, clock.LONGEST_LEAD), (0.02, clock.LONGEST_LEAD, clock.LONGEST_LEAD)):
        log.clear()
        assert timed(lambda s=seconds: log.append("run") or time.sleep(s), short=True) == 40.0
        assert log[:4] == ["run"] * 4
        spun, *rest = log[4:8]
        assert rest == ["event", "run", "event"]
        assert log[4:] == log[4:8] * 5  # two for a first guess, one to warm up, two that count
        assert least * clock.CYCLES <= spun <= most * clock.CYCLES


def test_ratios_follow_from_times(tmp_path, monkeypatch):
    """With a clock that ticks: 1 ms for the first time it takes, 2 for the second, and so on."""

    class Ticking(clock.Clock):
        def __init__(self, device, budget):
            super().__init__(device, budget)
            self.on, self.ticks = True, 0

        def __call__(self, run, short=False):
            run()
            self.ticks += not short
            return float(self.ticks)

    monkeypatch.setattr(attention, "Clock", Ticking)
    _, cases = in_process(tmp_path, "--only", "tiny 4x21+8x6", "--target", "sdpa")
    plain, mapped = cases["4x21+8x6"], cases["4x21+8x6@collapse"]
    # Dense, grouped and its copies, flex, the target; dense and the target again. Flex has no part in maps.
    assert [plain[name]["ms"] for name in ("math", "grouped", "flex", "sdpa")] == [1, 2, 4, 5]
    assert (plain["grouped"]["copy_ms"], plain["math"]["again_ms"], plain["sdpa"]["again_ms"]) == (3, 6, 7)
    assert [mapped[name]["ms"] for name in ("math", "grouped", "flex", "sdpa")] == [8, 9, None, 11]
    assert plain["sdpa"]["spread"] == pytest.approx(7 / 5 - 1)
    assert plain["sdpa"]["over_grouped"] == pytest.approx(2 / 5)
    assert plain["math"]["of_cudnn"] == 1
    # Eleven frames of twenty-one in five times the time.
    assert plain["sdpa"]["of_cudnn"] == pytest.approx(11 / 21 / 5)
    assert plain["sdpa"]["map_cost"] is None
    assert mapped["sdpa"]["map_cost"] == pytest.approx(11 / 5)


def test_sequences_are_packed_and_put_back_as_they_belong(tmp_path, monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def one_by_one(query, key, value, query_begins, key_begins, max_q, max_k):
        out = torch.full_like(query, torch.nan)
        bounds = zip(query_begins[:-1], query_begins[1:], key_begins[:-1], key_begins[1:], strict=True)
        for a, b, c, d in bounds:
            assert b - a <= max_q
            assert d - c <= max_k
            rows = (query[a:b], key[c:d], value[c:d])
            out[a:b] = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in rows)).transpose(0, 1)
        return out

    monkeypatch.setattr(varlen, "varlen_attn", one_by_one)
    _, cases = in_process(tmp_path, "--target", "sdpa")
    assert {case["varlen"]["state"] for case in cases.values()} == {"ok"}


@pytest.mark.parametrize("tokens", [40, 128, 150])
@pytest.mark.parametrize("name", ["4x21+8x6", "pyramid"])
def test_block_masks_are_those_that_torch_makes(name, tokens):
    layer = plans.Layer(plans.Shape("small", 6, tokens, 16), torch.float32, torch.device("cpu"))
    case = plans.Case(layer, next(plan for plan in plans.PLANS if plan.name == name))
    mask = peers.block_mask(peers.frames_read(case), tokens)
    torchs = create_block_mask(mask.mask_mod, 1, 6, 3 * tokens, 21 * tokens, device="cpu", BLOCK_SIZE=peers.BLOCK)
    assert mask.seq_lengths == torchs.seq_lengths
    for ours, its in (
        ((mask.kv_num_blocks, mask.kv_indices), (torchs.kv_num_blocks, torchs.kv_indices)),
        ((mask.full_kv_num_blocks, mask.full_kv_indices), (torchs.full_kv_num_blocks, torchs.full_kv_indices)),
    ):
        assert ours[0].equal(its[0])
        assert ours[1].equal(its[1])
