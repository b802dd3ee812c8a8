"""Tuning, with kernels in the interpreter and a clock that says what it is told."""

import itertools
import json
import os

import pytest
import torch
from click.testing import CliRunner
from triton.runtime.errors import OutOfResources

from headforce.cli import main
from headforce.errors import HeadforceError
from headforce.kernels import config as config_module
from headforce.kernels.config import Config, config_of
from headforce.lowering import tune as tune_module
from headforce.lowering.tune import Problem, Wanted, problems, record, tune, tune_device
from headforce.testing import assert_refused

CPU = torch.device("cpu")
SMALL = Problem(heads=3, tokens=20, width=16, far=3, near=2, chunk=2, dtype=torch.bfloat16)
TILES = [Config(16, 16), Config(32, 16), Config(16, 32), Config(32, 32)]


@pytest.fixture
def tiles(monkeypatch):
    monkeypatch.setattr(tune_module, "candidates", lambda *_: TILES)


def test_the_fastest_that_is_right_is_first(tiles, monkeypatch):
    right = tune_module.attention

    def attention(*arguments, config, kernel):
        if config == TILES[1]:
            raise OutOfResources(300_000, 232_448, "shared memory")
        out, lse = right(*arguments, config=config, kernel=kernel)
        return (out * 1.1 if config == TILES[3] else out), lse

    monkeypatch.setattr(tune_module, "attention", attention)
    times = iter([5.0, 3.0])
    trials = tune("ragged_attention", "sm90", SMALL, CPU, lambda run: run() is None or next(times))
    assert [(t.config, t.ms) for t in trials[:2]] == [(TILES[2], 3.0), (TILES[0], 5.0)]
    refused = {t.config: t.refused for t in trials[2:]}
    assert all(t.ms is None for t in trials[2:])
    assert "shared memory" in refused[TILES[1]]
    assert "is allowed" in refused[TILES[3]]


def test_nan_is_an_error(tiles, monkeypatch):
    right = tune_module.attention
    monkeypatch.setattr(tune_module, "attention", lambda *a, **k: (right(*a, **k)[0] * torch.nan, None))
    assert all(t.ms is None for t in tune("ragged_attention", "sm90", SMALL, CPU, lambda run: 1.0))


def test_what_was_measured_is_what_a_launch_takes(tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    problem = Problem()
    for ms, tiles in ((2.0, Config(64, 64, 4, 2)), (1.0, Config(128, 128, 8, 2, True))):
        record("ragged_attention", "sm90", problem, tune_module.Trial(tiles, ms), "a GPU", path)
    record("ragged_attention", "sm80", problem, tune_module.Trial(Config(64, 32, 4, 2), 9.0), "another", path)
    entries = json.loads(path.read_text())["entries"]
    assert len(entries) == 2
    assert entries[1]["measured"] == {"ms": 1.0, "on": "a GPU", "heads": 12, "tokens": 1560}
    monkeypatch.setattr(config_module, "TUNING", path)
    config_module._tuned.cache_clear()
    try:
        assert config_of("ragged_attention", "sm90", 128, 128, torch.bfloat16) == Config(128, 128, 8, 2, True)
        assert config_of("ragged_attention", "sm80", 100, 128, torch.bfloat16) == Config(64, 32, 4, 2)
        assert config_of("ragged_attention", "sm90", 64, 64, torch.bfloat16) == Config(128, 64, 8, 3, True)
    finally:
        config_module._tuned.cache_clear()


def test_without_a_configuration_that_fits():
    with pytest.raises(HeadforceError, match=r"HF-KERNEL.*shared memory.*gfx942"):
        config_of("ragged_attention", "gfx942", 2048, 2048, torch.float32)
    with pytest.raises(HeadforceError, match="HF-KERNEL"):
        config_of("ragged_attention", "sm75", 128, 128, torch.bfloat16)
    # Wide heads get small tiles before they are refused.
    assert config_of("ragged_attention", "sm90", 256, 256, torch.bfloat16).block_m == 64


# --- what is chosen -------------------------------------------------------------------------------------------------


def tuned(monkeypatch, wanted, architecture="sm90"):
    """The kernels, dtypes and head dims that would be measured."""
    monkeypatch.setattr(tune_module, "architecture_of", lambda _: architecture)
    monkeypatch.setattr(tune_module, "tune", lambda *_: [])
    found = tune_device(CPU, lambda run: 1.0, wanted)
    return [(kernel, problem.dtype, problem.width) for kernel, problem, _ in found]


def test_without_a_choice_everything_is_measured_that_runs(monkeypatch):
    portable = [("ragged_attention", p.dtype, p.width) for p in problems("ragged_attention")]
    hopper = [("hopper_attention", p.dtype, p.width) for p in problems("hopper_attention")]
    assert tuned(monkeypatch, Wanted()) == portable + hopper
    assert tuned(monkeypatch, Wanted(), "sm80") == portable


def test_choices_narrow_each_other(monkeypatch):
    bfloat16 = [(kernel, torch.bfloat16, 128) for kernel in ("ragged_attention", "hopper_attention")]
    assert tuned(monkeypatch, Wanted(dtypes=("bfloat16",), widths=(128,))) == bfloat16
    assert tuned(monkeypatch, Wanted(("hopper_attention",), ("bfloat16",), (128,))) == bfloat16[1:]
    assert len(tuned(monkeypatch, Wanted(dtypes=("float32", "float16"), widths=(64,)))) == 3
    with assert_refused("HF-KERNEL", found="hopper_attention on sm80"):
        tuned(monkeypatch, Wanted(("hopper_attention",)), "sm80")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"kernels": ("ragged",)}, "ragged"),
        ({"dtypes": ("bfloat16", "bfloat")}, "bfloat (did you mean"),
        ({"widths": (96,)}, "96"),
        ({"kernels": ("hopper_attention",), "dtypes": ("float32",)}, "hopper_attention, float32"),
    ],
)
def test_what_is_never_measured_is_refused(wanted, found):
    with assert_refused("HF-OPTION", found=found):
        Wanted(**wanted)


# --- the table ------------------------------------------------------------------------------------------------------

BEST = Config(64, 64, 4, 2)


@pytest.fixture
def device(monkeypatch):
    """A GPU on which one problem takes one millisecond; the problems that were measured."""
    measured = []

    def tune_device(*_):
        for kernel in ("ragged_attention", "hopper_attention"):
            measured.append(kernel)
            yield kernel, Problem(), [tune_module.Trial(BEST, 1.0)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(config_module, "architecture_of", lambda _: "sm90")
    monkeypatch.setattr(tune_module, "tune_device", tune_device)
    monkeypatch.delenv("HEADFORCE_TUNING", raising=False)
    return measured


def tuned_by_command(*args, code=0):
    done = CliRunner().invoke(main, ["tune", *map(str, args)])
    assert done.exit_code == code, done.output
    assert code != 0 or done.exception is None
    return done.output


def tiles_of(kernel):
    return config_of(kernel, "sm90", 128, 128, torch.bfloat16)


def test_a_table_of_ones_own_is_written_and_read(device, tmp_path, monkeypatch):
    table = tmp_path / "own.json"
    tuned_by_command("--out", table)
    monkeypatch.setenv("HEADFORCE_TUNING", str(table))
    assert tiles_of("ragged_attention") == tiles_of("hopper_attention") == BEST
    monkeypatch.setenv("HEADFORCE_TUNING", "")
    assert tiles_of("ragged_attention") != BEST


def test_the_table_that_is_read_is_the_one_that_is_written(device, tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "TUNING", tmp_path / "package.json")
    tuned_by_command()
    assert [file.name for file in tmp_path.iterdir()] == ["package.json"]
    monkeypatch.setenv("HEADFORCE_TUNING", str(tmp_path / "own.json"))
    tuned_by_command()
    assert (tmp_path / "own.json").read_bytes() == (tmp_path / "package.json").read_bytes()


def test_an_interrupt_leaves_a_whole_table(device, tmp_path, monkeypatch):
    table, replace, count = tmp_path / "own.json", os.replace, itertools.count()

    def cut_short(*paths):
        if next(count):
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr("headforce.whole_file.os.replace", cut_short)
    CliRunner().invoke(main, ["tune", "--out", str(table)])
    assert len(device) == 2
    assert [entry["kernel"] for entry in json.loads(table.read_text())["entries"]] == ["ragged_attention"]
    assert [file.name for file in tmp_path.iterdir()] == ["own.json"]


def test_where_nothing_can_be_written_nothing_is_measured(device, tmp_path, monkeypatch):
    assert "it is a folder" in tuned_by_command("--out", tmp_path, code=1)
    monkeypatch.setattr(config_module, "TUNING", tmp_path / "read-only" / "tuning.json")
    assert "name another with --out" in tuned_by_command(code=1)
    (tmp_path / "other.json").write_text("[]")
    assert "HF-OPTION" in tuned_by_command("--out", tmp_path / "other.json", code=2)
    assert device == []


@pytest.mark.parametrize(
    "text", [None, b"", b'{"entries": [', b"[]", b"{}", b"\xff", b'{"entries": [{"kernel": "ragged_attention"}]}']
)
def test_a_variable_that_names_no_table(tmp_path, monkeypatch, text):
    table = tmp_path / "own.json"
    if text is not None:
        table.write_bytes(text)
    monkeypatch.setenv("HEADFORCE_TUNING", str(table))
    with assert_refused("HF-OPTION", site=str(table)):
        tiles_of("ragged_attention")
