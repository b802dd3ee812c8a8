"""A script that knows nothing of headforce, run by the commands as a user runs them. It uses the example model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headforce.run.video import read_video

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).parent / "scripts" / "make_video.py")
POLICY = "headforce: 1\nclasses: {{a: {}}}\ndefault: a\n"
pytestmark = pytest.mark.slow


def headforce(*words, folder):
    """The command, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "headforce", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def policy(folder, rule):
    (folder / "policy.yaml").write_text(POLICY.format(rule))
    return ["--policy", "policy.yaml", "--inner", "eager"]


def test_run(tmp_path):
    """The model's own exit code comes back although everything was rewritten, and the report says what was."""
    chosen = policy(tmp_path, "window(1)")
    script = ["python", SCRIPT, "--out", "made", "--chunks", "1", "--exit", "3"]
    done = headforce("run", *chosen, "--seed", 5, "--report", "report.json", "--", *script, folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "made (1, 4, 3, 8, 12)\n"
    assert np.load(tmp_path / "made" / "video.npy").shape == (1, 4, 3, 8, 12)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["version"], report["exit_code"], report["mode"]) == (1, 3, "owned")
    (process,) = report["processes"]
    (model,) = process["models"]
    assert process["argv"] == script[1:]
    assert process["breaks"] == model["sites"]["refused"] == model["misses"] == 0
    assert model["name"] == "CausalWan"
    assert model["passes"] == model["launches"] == 2
    assert model["sites"]["rewritten"] == model["graphs"] > 0
    assert model["videos"] == [[3]]
    assert model["held"] == model["dense"] * 4 // 6  # a frame of history and a chunk, of a window of six frames
    assert "2 launches in 2 passes" in done.stderr
    assert f"{model['graphs']} rewritten, 0 refused" in done.stderr
    assert "(67%)" in done.stderr


@pytest.mark.slow
def test_a_model_of_no_family_has_not_worked(tmp_path):
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "class Unknown(torch.nn.Sequential): pass\n"
        "print(Unknown(torch.nn.Linear(2, 1))(torch.zeros(2)).shape)\n"
    )
    done = headforce("run", "--policy", "self_forcing", "--", "python", "script.py", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "torch.Size([1])\n")
    assert "[HF-RUN-NOTHING]: found calls of Unknown;" in done.stderr


def test_a_policy_that_is_not_there(tmp_path):
    done = headforce("run", "--policy", "no/such.yaml", "--", "python", "-c", "print('ran')", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "[HF-POLICY-FILE]" in done.stderr


@pytest.mark.slow
def test_compare(tmp_path):
    chosen = policy(tmp_path, "window(1)")
    options = ["--layout", "BCFHW", "--video", "{out}/*.npy", "--out", "results", "--rate", 8]
    done = headforce("compare", *chosen, *options, "--", "python", SCRIPT, "--out", "{out}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "results"
    names = ["compare.json", "eager/video.npy", "policy/video.npy", "video.mp4", "video.png"]
    assert sorted(str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()) == names
    report = json.loads((results / "compare.json").read_text())
    eager, rewritten = (np.load(results / side / "video.npy") for side in ("eager", "policy"))

    (video,) = report["videos"]
    assert video["chunks"] == [3, 3]
    # Same seed, and a first chunk without a past: the sides differ where the policy lets go, and only there.
    first, second = (np.abs(eager - rewritten)[:, :, i : i + 3].max() for i in (0, 3))
    assert first < 1e-4 < second
    assert video["chunk_psnr"][0] is None or video["chunk_psnr"][0] > 100
    worst = 10 * np.log10(np.ptp(eager) ** 2 / ((eager - rewritten)[:, :, 3:].astype(float) ** 2).mean())
    assert video["chunk_psnr"][1] == pytest.approx(worst)
    deltas = np.abs(np.diff(eager.astype(float), axis=2)).mean(axis=(0, 1, 3, 4))
    assert video["changes"]["eager"] == pytest.approx(deltas)
    assert video["discontinuity"]["eager"] == pytest.approx(deltas.max() / deltas.mean())
    assert report["runs"]["eager"]["processes"][0]["models"][0]["launches"] == 0
    assert report["runs"]["policy"]["processes"][0]["models"][0]["launches"] == 4
    assert f"PSNR {video['psnr']:.1f} dB" in done.stdout

    (film,) = read_video(results / "video.mp4")
    assert film.shape == (6, 240, 2 * 360, 3)  # pictures of 8 x 12, thirty times as large, side by side
    assert np.abs(film[:3, :, :360].astype(int) - film[:3, :, 360:]).mean() < 3
    assert (results / "video.png").read_bytes().startswith(b"\x89PNG")
