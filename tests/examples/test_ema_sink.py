"""The package of Reward Forcing's sink does what the published code does: a factor of 0.999 at every eviction."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_v9_the_sink_is_the_published_one():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples" / "plugin_ema_sink")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("reward_forcing.py"))],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "the same\n"
