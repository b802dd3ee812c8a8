"""The file of a machine: read back as it was written, refused where it is not whole; and its tables."""

import json

import pytest
import torch
from click.testing import CliRunner

from headforce.cli import main
from headforce.cost import Machine
from headforce.cost.calibrate import Grid, calibrate
from headforce.cost.machine import Table
from headforce.cost.stopwatch import Stopwatch, lower_quartile
from headforce.errors import HeadforceError

from .conftest import linear_machine


def test_a_machine_is_read_back_as_it_was_written(tmp_path, machine):
    machine.save(tmp_path / "machine.json")
    assert Machine.load(tmp_path / "machine.json") == machine
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]


def test_files_that_are_not_whole(tmp_path, machine):
    file = tmp_path / "machine.json"
    machine.save(file)
    whole = file.read_text()
    data = json.loads(whole)
    table = data["linear"]
    for content in (
        "",
        whole[: len(whole) // 2],
        "[]",
        json.dumps({"headforce": 1}),
        json.dumps({**data, "version": 99}),
        json.dumps({name: value for name, value in data.items() if name != "host"}),
        json.dumps({**data, "linear": {**table, "seconds": table["seconds"][1:]}}),
        json.dumps({**data, "linear": {**table, "axes": [table["axes"][0][::-1], table["axes"][1]]}}),
        json.dumps({**data, "linear": {**table, "seconds": [-1.0, *table["seconds"][1:]]}}),
        json.dumps({**data, "rest": 3}),
        json.dumps({**data, "ragged": {}}),
        json.dumps({**data, "ends": table}),
        json.dumps({**data, "inner": "other"}),
    ):
        file.write_text(content)
        with pytest.raises(HeadforceError) as refused:
            Machine.load(file)
        assert refused.value.code == "HF-MACHINE-FILE"
        assert str(file) in str(refused.value)
    with pytest.raises(HeadforceError, match="No such file"):
        Machine.load(tmp_path / "other.json")


def test_a_table_between_its_points_and_past_them():
    table = Table(((1.0, 100.0), (10.0, 1000.0)), (1.0, 10.0, 4.0, 40.0))
    assert [table.at(*sizes) for sizes in ((1, 10), (1, 1000), (100, 10), (100, 1000))] == pytest.approx([1, 10, 4, 40])
    assert table.at(10, 100) == pytest.approx((1 * 10 * 4 * 40) ** 0.25)  # half way, as powers go
    assert table.at(200, 3000) == pytest.approx(2 * 3 * 40)  # in proportion
    assert table.at(0.1, 1) == pytest.approx(1)  # the launch is left
    assert table.at(0, 10) == 0


@pytest.mark.slow
def test_measuring():
    """Few sizes, once each: all tables are there, and a prediction can be made of them."""
    sizes = {"heads": (1, 2), "queries": (3, 6), "keys": (4, 8), "ratios": (1, 2), "numbers": (1 << 10, 1 << 11)}
    grid = Grid(rows=(2, 4), weights=(16, 64), **sizes)
    said = []
    watch = Stopwatch(torch.device("cpu"), budget=0, least=1)
    found = calibrate(torch.device("cpu"), torch.bfloat16, head_dims=(16,), grid=grid, watch=watch, say=said.append)
    assert (found.target, found.dtype, found.inner) == ("sdpa", "bfloat16", "eager")
    assert found.ragged[16].axes == ((1, 2), (3, 6), (1, 2))
    assert len(said) == len(set(said)) > 8
    assert all(value >= 0 for value in vars(found.host).values())


def test_a_stopwatch_takes_turns_and_the_lower_quartile():
    times = iter(range(1000))
    ran = []
    watch = Stopwatch(torch.device("cpu"), budget=0, least=4, now=lambda: next(times))
    assert watch(lambda: ran.append("a"), lambda: ran.append("b")) == 1
    assert ran == ["a", "b", "a", "b", "a", "b"]  # a warm-up and a first look, then in turn
    assert lower_quartile([5.0, 1.0, 2.0, 9.0]) == 2.0


def test_the_commands(tmp_path):
    file = tmp_path / "machine.json"
    linear_machine(dtype="bfloat16").save(file)
    plan = ["plan", "longlive", "--layers", "2", "--heads", "4", "--schedule", "3x8", "--predict", str(file)]
    done = CliRunner().invoke(main, plan)
    assert done.exit_code == 0, done.output
    assert "headforce / dense" in done.output
    done = CliRunner().invoke(main, [*plan, "--json", "--passes", "2"])
    predicted = json.loads(done.output)["predicted"]
    assert len(predicted["policy"]) == len(predicted["dense"]) == 8
    ours, dense = (predicted[side][-1] for side in ("policy", "dense"))
    assert ours["linear"] == dense["linear"]
    # Ten times the time for what it reads, and it reads less: a sink of 3 and a window that counts the chunk.
    assert 1 < ours["attention"] / dense["attention"] < 10
    done = CliRunner().invoke(main, [*plan, "--dtype", "float32"])
    assert done.exit_code == 2
    done = CliRunner().invoke(main, ["calibrate", "--out", str(tmp_path / "no" / "machine.json")])
    assert (done.exit_code, "cannot be written" in done.output) == (1, True)
    done = CliRunner().invoke(main, ["calibrate", "--out", str(tmp_path)])
    assert (done.exit_code, "a folder" in done.output) == (1, True)
    for wrong, code in (
        (["--inner", "egaer"], "HF-OPTION"),
        (["--target", "spda"], "HF-TARGET"),
        (["--device", "nonsense"], "HF-OPTION"),
        (["--device", "xpu:7"], "HF-OPTION"),
    ):
        done = CliRunner().invoke(main, ["calibrate", "--out", str(file), *wrong])
        assert (done.exit_code, code in done.stderr) == (2, True), done.output
