"""The checker: that it catches what it claims to, says where, and leaves a folder that shows it again."""

import subprocess
import sys
import time

import pytest
import torch

from headforce.errors import HeadforceError
from headforce.lowering.verify import Verification, deviation
from headforce.lowering.verify.case import Case
from headforce.lowering.verify.failure import write_launch
from headforce.lowering.verify.shrink import shrink
from headforce.lowering.watch import Launch, watching
from headforce.testing.fault_matrix import caught
from headforce.testing.faults import FAULTS, LEVELS
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
