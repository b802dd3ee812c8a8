"""Profiles on disk: whole or not at all, and refused with a code when they are anything else."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from headforce import HeadforceError
from headforce.profile.file import NAME, load_profile, save_profile

from .made import profile, random_video


@pytest.fixture
def made():
    return profile(random_video(seed=0), random_video(seed=1))


def equal(one, other):
    assert (one.model, one.sample, one.source) == (other.model, other.sample, other.source)
    for a, b in zip(one.videos, other.videos, strict=True):
        assert a.name == b.name
        for p, q in zip(a.passes, b.passes, strict=True):
            assert (p.chunk, p.step, p.keys) == (q.chunk, q.step, q.keys)
            for name in ("mass", "logit", "entropy"):
                np.testing.assert_array_equal(getattr(p, name), getattr(q, name))


def test_what_is_read_is_what_was_written(made, tmp_path):
    save_profile(made, tmp_path / "a" / "b")
    equal(load_profile(tmp_path / "a" / "b"), made)
    assert sorted(path.suffix for path in (tmp_path / "a" / "b").iterdir()) == [".json", ".safetensors", ".safetensors"]


def change(folder, **values):
    index = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(index | values))


def test_what_is_refused(made, tmp_path):
    save_profile(made, tmp_path)
    index = (tmp_path / NAME).read_bytes()
    tensors = next(tmp_path.glob("*.safetensors"))
    whole = tensors.read_bytes()

    def refused(says):
        with pytest.raises(HeadforceError, match=f"HF-PROFILE-FILE.*{says}"):
            load_profile(tmp_path)
        (tmp_path / NAME).write_bytes(index)
        tensors.write_bytes(whole)
        equal(load_profile(tmp_path), made)

    (tmp_path / NAME).write_bytes(index[: len(index) // 2])
    refused("cannot be read")
    (tmp_path / NAME).write_text('{"headforce": 1, "classes": {}}')
    refused("no profile")
    (tmp_path / NAME).write_text("[1, 2]")
    refused("no profile")
    for version in (0, 2, None):
        change(tmp_path, version=version)
        refused("version")
    change(tmp_path, videos=[{"file": tensors.name}])
    refused("not whole")
    change(tmp_path, model={"layers": 3})
    refused("not whole")
    change(tmp_path, model={"layers": 9, "heads": 9, "tokens_per_frame": 1, "frame_bytes": 1})
    refused("statistics")
    tensors.write_bytes(whole[:-10])
    refused("other content")
    tensors.write_bytes(b"x" + whole[1:])
    refused("other content")
    tensors.unlink()
    refused("cannot be read")
    (tmp_path / NAME).unlink()
    refused("cannot be read")
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadforceError, match=r"HF-PROFILE-FILE.*cannot be written"):
        save_profile(made, tmp_path / "file" / "below")


@pytest.mark.parametrize("interrupted", [0, 1, 2])
def test_an_interruption_leaves_what_was_there(made, tmp_path, monkeypatch, interrupted):
    """Ctrl-C in the middle of writing the second video, at any of the files that are put into place."""
    first = profile([*made.videos[0].passes])
    save_profile(first, tmp_path)
    calls, replace = [], os.replace

    def stopped(*paths):
        calls.append(paths)
        if len(calls) > interrupted:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", stopped)
    if interrupted < 2:
        with pytest.raises(KeyboardInterrupt):
            save_profile(made, tmp_path)
        equal(load_profile(tmp_path), first)
    else:
        save_profile(made, tmp_path)
        equal(load_profile(tmp_path), made)
        assert len(calls) == 2  # the second video and the index: the first video was there
    assert all(path.suffix in (".json", ".safetensors") for path in tmp_path.iterdir())
