"""`python -m tests.upstream FAMILY CHECKOUT [--inner eager] [--target sdpa]`: what was measured, as JSON."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import torch

from .families import FAMILIES
from .measure import measure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--inner", default="eager", help="the inner compiler")
    parser.add_argument("--target", default="sdpa", help="how attention is computed")
    parser.add_argument("--quiet", action="store_true", help="drop what the repository prints")
    given = parser.parse_args()
    torch.set_num_threads(1)
    named = subprocess.run(
        ["git", "-C", str(given.checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    commit = named.stdout.strip() or "unknown"
    with contextlib.redirect_stdout(io.StringIO() if given.quiet else sys.stdout):
        done = measure(FAMILIES[given.family], given.checkout, commit, given.inner, given.target)
    print(json.dumps(done.to_json(), indent=1))


if __name__ == "__main__":
    main()
