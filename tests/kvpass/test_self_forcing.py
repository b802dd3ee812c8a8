"""The unmodified Self-Forcing model, where a checkout is named by HEADFORCE_SELF_FORCING; and its shims, everywhere."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from headforce.kvpass.capture.patches import patched
from headforce.kvpass.capture.self_forcing import _MATH, BoxedDictCache, Grid, IndexBox

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = os.environ.get("HEADFORCE_SELF_FORCING", "")


@pytest.mark.skipif(not CHECKOUT, reason="HEADFORCE_SELF_FORCING names no checkout of Self-Forcing")
@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="the checkout needs diffusers")
@pytest.mark.parametrize(("target", "most"), [("sdpa", 0.0), ("triton", 0.01)])
def test_the_unmodified_model_is_equal_under_native(target: str, most: float) -> None:
    """Bitwise with sdpa; within a rounding of bfloat16 in the kernels, which rotate in float32 besides."""
    script, environment = ROOT / "examples/self_forcing_upstream.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "--repo", CHECKOUT, "--json", "--target", target]
    if target == "triton":
        command += ["--chunks", "4", "--passes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    eager, native, viewed, policy = json.loads(done.stdout)
    assert native["difference_from_eager"] <= most
    assert viewed["difference_from_eager"] <= most
    assert policy["difference_from_eager"] > most
    assert policy["held_bytes"] < eager["held_bytes"]
    for side in (native, viewed, policy):
        assert side["graph_breaks"] == 0
        assert side["graphs"] <= 5
        assert side["launches_per_layer_and_pass"] == 1.0


def test_a_grid_is_read_as_the_model_reads_grid_sizes() -> None:
    tensor = torch.tensor([[3, 4, 6], [3, 4, 6]])
    grid = Grid(2, (3, 4, 6))
    assert grid.tolist() == tensor.tolist()
    assert _MATH.prod(grid[0][1:]).item() == math.prod(tensor[0][1:]).item() == 24
    assert [row.sizes for row in grid] == [(3, 4, 6)] * 2
    assert _MATH.prod([2, 3], start=2) == 12
    assert _MATH.ceil(1.5) == 2


def test_index_boxes_replace_tensors_and_give_them_back() -> None:
    cache = {"k": torch.zeros(1), "v": torch.zeros(1), "global_end_index": torch.tensor([5])}
    cache["local_end_index"] = torch.tensor([4])
    layer = BoxedDictCache(cache, adopted=False)
    assert not layer.is_empty()
    layer.replace(torch.ones(1), torch.ones(1))
    assert isinstance(cache["global_end_index"], IndexBox)
    cache["global_end_index"].fill_(7)
    assert cache["global_end_index"].item() == 7
    cache["local_end_index"] = torch.tensor([0])  # a pipeline that starts anew
    BoxedDictCache(cache, adopted=True)
    assert isinstance(cache["local_end_index"], IndexBox)
    layer.give_back(torch.zeros(1), torch.zeros(1))
    assert torch.equal(cache["global_end_index"], torch.tensor([7]))


def test_patches_are_counted() -> None:
    module = types.ModuleType("headforce_patched")
    module.name = "original"
    first, second = patched(module, "name", "shim"), patched(module, "name", "another shim")
    first.__enter__()
    second.__enter__()
    assert module.name == "shim"
    first.__exit__(None, None, None)
    assert module.name == "shim"
    second.__exit__(None, None, None)
    assert module.name == "original"
