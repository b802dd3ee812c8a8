"""The checker: that it catches what it claims to, says where, and leaves a folder that shows it again."""

import ast
import runpy
import subprocess
import sys
import time

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.lowering.stream import Stream
from headforce.lowering.verify import Verification, deviation
from headforce.lowering.verify.case import Case
from headforce.lowering.verify.failure import write_launch, write_plan
from headforce.lowering.verify.shrink import shrink
from headforce.lowering.watch import Launch, watching
from headforce.policy import BUSIEST, Policy, Schedule, parse_rule
from headforce.testing import fault_matrix
from headforce.testing.fault_matrix import NONE, caught
from headforce.testing.faults import FAULTS, FULL, IDENTITY, LEVELS, PLAN, SITE
from headforce.testing.rig import Rig, mixed


class Kept:
    """Keeps the launches of a rig."""

    def __init__(self):
        self.launches = []

    def wrote(self, *operands):
        """Nothing is looked at."""

    def attended(self, launch, result):
        copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in launch]
        self.launches.append((Launch(*copies), result))


def launches(dtype=torch.float32, **kwargs):
    """Every launch of two layers over four chunks, with its result."""
    rig, kept = Rig(mixed(), dtype=dtype, **kwargs), Kept()
    with watching(kept):
        for start in range(0, 12, 3):
            rig.run(start, 3)
    return kept.launches


@pytest.mark.parametrize("name", FAULTS)
def test_every_level_catches_the_faults_that_it_claims_to(name):
    fault = FAULTS[name]
    assert fault.claimed
    assert {level for level in LEVELS if level in fault.claimed and not caught(fault, level)} == set()


@pytest.mark.parametrize(("level", "broken"), [(PLAN, "check_plan"), (SITE, "deviation"), (FULL, "deviation")])
def test_an_assertion_that_breaks_within_a_level_is_no_detection(monkeypatch, level, broken):
    def breaks(*_):
        raise AssertionError("a checker that broke")

    monkeypatch.setattr(fault_matrix, broken, breaks)
    with pytest.raises(AssertionError, match="a checker that broke"):
        caught(NONE, level)
    assert not caught(NONE, IDENTITY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_right_launches_are_within_the_budget(dtype):
    for launch, result in launches(dtype):
        assert deviation(launch, result, sampled=None) is None


def test_a_deviation_says_what_the_result_looks_like():
    launch, _ = launches()[-1]
    read = next(i for i, read in enumerate(launch.reads.tolist()) if read[3] and read[5] > 2)
    batch, head, *_, first, _, _, _ = launch.reads[read].tolist()
    missing = launch.runs.clone()
    missing[first, 1] = 0
    found = deviation(launch, Case(launch._replace(runs=missing), "reference").result, sampled=None)
    assert (found.read, found.batch, found.head) == (read, batch, head)
    assert (found.likeness, found.run) == ("as if the run were missing", first)
    scaled = deviation(launch, Case(launch._replace(scale=2 * launch.scale), "reference").result)
    assert scaled.likeness == f"as if the scale were {2 * launch.scale:g}"


@pytest.mark.parametrize("operand", ["key", "value"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_operands_that_are_not_finite_are_a_deviation_whatever_the_target_makes_of_them(operand, number):
    """As of a page that nobody wrote."""
    launch, result = launches()[-1]
    spoilt = getattr(launch, operand).clone()
    spoilt.flatten(0, 1)[int(launch.runs[int(launch.reads[0, 4]), 0])] = number
    launch = launch._replace(**{operand: spoilt})
    for made in (Case(launch, "reference").result, result, torch.zeros_like(result)):
        found = deviation(launch, made, sampled=None)
        assert found.likeness == "keys or values that are not finite"


def test_values_where_there_should_be_none_are_ranked_too():
    """Two reads of which nothing but zero is right: no share of their limit is larger than another."""
    launch, result = launches()[-1]
    silent = launch._replace(value=torch.zeros_like(launch.value))
    found = deviation(silent, torch.ones_like(result), sampled=None)
    assert (found.error, found.limit) == (1.0, 0.0)


def test_a_value_where_nothing_is_read_is_a_deviation():
    launch, result = launches()[-1]
    reads = launch.reads.clone()
    reads[reads[:, 1] == 2, 3] = 0
    found = deviation(launch._replace(reads=reads), result)
    assert found.head == 2
    assert found.read == -1


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.target != "sdpa"])
def test_a_failing_launch_is_made_small_and_still_fails(name):
    case = next(c for launch, _ in reversed(launches(tokens=12)) if (c := Case(launch, FAULTS[name].target)).fails)
    small = shrink(case)
    assert small.fails
    assert small.size < case.size / 4
    begun = time.perf_counter()
    assert small.deviation() is not None
    assert time.perf_counter() - begun < 1


def test_a_launch_that_is_right_is_not_shrunk():
    case = Case(launches()[0][0], "sdpa")
    assert shrink(case) is case


def refused(tmp_path, target="faulty_wrong_scale"):
    case = next(c for launch, _ in launches() if (c := Case(launch, target)).fails)
    error = HeadforceError("HF-VERIFY-SITE", site='a """site"""', found="this", needed="that")
    return case, write_launch(tmp_path, error, case, None, None)


@pytest.mark.slow
def test_the_folder_of_a_failure_shows_it_again(tmp_path):
    _, error = refused(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert str(folder) in error.hint
    assert {"repro.py", "case.json", "inputs.safetensors", "error.txt", "versions.json"} == {
        file.name for file in folder.iterdir()
    }
    done = subprocess.run([sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Deviation" in done.stdout


def refused_plan(tmp_path, schedule, rule="sink(1) | window(4)"):
    """The folder of a failure in the last chunk of a schedule."""
    policy = Policy({"a": parse_rule(rule)}, "a")
    stream = Stream(policy.bind(layers=1, heads=2, native=parse_rule("span(21)"), tokens=4))
    for chunk in Schedule.parse(schedule):
        stream.begin(chunk.start, chunk.frames, lambda _: BUSIEST)
    error = HeadforceError("HF-VERIFY-PLAN", site='a """site""" in C:\\Users', found="this", needed="that")
    bound = {"layers": 1, "heads": 2, "tokens": 4, "native": "span(21)", "batch": 1}
    write_plan(tmp_path, error, policy, stream.plan, {}, **bound)
    (folder,) = tmp_path.iterdir()
    return folder


def status_of(folder):
    """The exit status of the script that a folder holds."""
    try:
        runpy.run_path(str(folder / "repro.py"), run_name="__main__")
    except SystemExit as done:
        return done.code
    return 0


@pytest.mark.parametrize("schedule", ["1,3x3", "3x4", "2,5,5", "1", "3,1"])
def test_the_folder_of_a_plan_says_when_it_is_right_again(tmp_path, schedule, capsys):
    folder = refused_plan(tmp_path, schedule)
    with FAULTS["skipped_commit"].on():
        assert status_of(folder) == (schedule != "1")
    assert status_of(folder) == 0
    assert capsys.readouterr().out.endswith("every plan is what the oracle says\n")


def test_a_stream_that_cannot_be_planned_again_is_not_said_to_differ(tmp_path, capsys):
    """Nobody decides for a store here."""
    assert status_of(refused_plan(tmp_path, "3x3", "episodic(2) | window(1)")) == 2
    assert "HF-DECISION" in capsys.readouterr().out


def test_what_an_error_says_is_quoted_in_the_script_of_a_plan(tmp_path):
    said = ast.get_docstring(ast.parse((refused_plan(tmp_path, "3x2") / "repro.py").read_text()))
    assert said.startswith("[HF-VERIFY-PLAN] at a '''site''' in C:\\Users: found this; needed that.")


def test_the_same_failure_has_the_same_folder(tmp_path):
    refused(tmp_path)
    refused(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_case_that_was_written_is_the_same_case(tmp_path):
    launch, _ = launches(strided=True)[-1]
    launch = launch._replace(query=launch.query.transpose(1, 2).contiguous().transpose(1, 2))
    case = Case(launch, "sdpa")
    for name, data in case.files().items():
        (tmp_path / name).write_bytes(data)
    again = Case.load(tmp_path)
    assert again.launch.query.stride() == launch.query.stride()
    assert again.digest == case.digest


def test_levels(monkeypatch):
    monkeypatch.delenv("HEADFORCE_VERIFY", raising=False)
    assert Verification.of(None).level == "off"
    monkeypatch.setenv("HEADFORCE_VERIFY", "site")
    assert Verification.of(None).launches
    assert not Verification.of("off").plans
    monkeypatch.setenv("HEADFORCE_VERIFY", "everything")
    for level, every in ((None, 1), ("sites", 1), ("site", 0)):
        with pytest.raises(HeadforceError, match="HF-OPTION"):
            Verification.of(level, every)
