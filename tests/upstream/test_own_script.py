"""The repositories' own scripts, unedited, under `headforce compare`; `own_script.py` has the stand-ins."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .measure import POLICY

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = os.environ.get("HEADFORCE_UPSTREAM", "")
CONFIG = """
denoising_step_list: [1000, 500]
warp_denoising_step: false
num_frame_per_block: 3
model_kwargs: {local_attn_size: 6, sink_size: 1, timestep_shift: 5.0}
"""
CHUNKS, PASSES, LAYERS, VIDEOS = 4, 3, 2, 2


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("diffusers", "einops", "omegaconf", "tqdm")),
    reason="the checkouts need diffusers, einops, omegaconf and tqdm",
)
@pytest.mark.parametrize("name", ["self-forcing", "causal-forcing"])
def test_inference_py(name: str, tmp_path: Path) -> None:
    """Two prompts, so that the caches serve a second video; the script writes mp4."""
    checkout = Path(CHECKOUTS) / name
    if not CHECKOUTS or not checkout.is_dir():
        pytest.skip(f"HEADFORCE_UPSTREAM names no folder with a checkout {name}")
    for file, text in (("policy.yaml", POLICY), ("config.yaml", CONFIG), ("prompts.txt", "a cat\na dog\n")):
        (tmp_path / file).write_text(text)
    script = ["inference.py", "--config_path", f"{tmp_path}/config.yaml", "--data_path", f"{tmp_path}/prompts.txt"]
    script += ["--output_folder", "{out}", "--num_output_frames", str(3 * CHUNKS), "--seed", "3"]
    own = ["python", "-m", "tests.upstream.own_script", str(checkout), *script]
    options = ["--policy", f"{tmp_path}/policy.yaml", "--inner", "eager", "--verify", "plan", "--target", "sdpa"]
    results = ["--video", "{out}/*.mp4", "--out", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-m", "headforce", "compare", *options, *results, "--", *own],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=checkout,  # where the script looks for configs
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "results" / "compare.json").read_text())
    (eager,), (process,) = (report["runs"][side]["processes"] for side in ("eager", "policy"))
    (model,) = process["models"]
    assert eager["models"][0]["passes"] == model["passes"] == CHUNKS * PASSES * VIDEOS
    assert model["name"] == "CausalWanModel"
    assert model["launches"] == LAYERS * model["passes"]
    assert model["sites"]["rewritten"] > 0
    assert model["sites"]["refused"] == model["misses"] == process["breaks"] == 0
    assert model["graphs"] <= 5
    assert model["videos"] == [[3] * CHUNKS] * VIDEOS
    assert 0 < model["held"] < model["dense"] == eager["models"][0]["dense"]
    assert [video["name"].removesuffix("-0") for video in report["videos"]] == ["a cat", "a dog"]
    for video in report["videos"]:
        first, *_, last = (999.0 if part is None else part for part in video["chunk_psnr"])
        assert first > last  # chunks have to lack something for their pictures to change
        assert video["chunks"] == [3] * CHUNKS
        assert (tmp_path / "results" / video["film"]).stat().st_size > 1000
        assert all(jump >= 1 for jump in video["discontinuity"].values())
