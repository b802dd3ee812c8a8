"""benchmarks/authors.py on a checkout: all sides run in turn and make the same video."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .child import ROOT, checkout_of, needs_diffusers


@needs_diffusers
def test_sides_run_in_turn_and_agree(tmp_path: Path) -> None:
    out = tmp_path / "authors.json"
    paths = [str(checkout_of(name)) for name in ("Forcing-KV", "self-forcing")]
    command = ["benchmarks/authors.py", "forcing-kv", *paths, "--grid", "4x6", "--noisy", "1", "--inner", "eager"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sides = json.loads(out.read_text())["sides"]
    assert len(sides) == 3
    assert sides["headforce"]["difference"] < 1e-5 < sides["Self-Forcing"]["difference"]
    assert sides["headforce"]["held"] < sides["the authors' code"]["held"] < sides["Self-Forcing"]["held"]
