"""Profiles on disk: a folder with `profile.json` and one file of tensors for every video.

Every file appears whole or not at all, the tensors of a video before the line that names them. So a run that is
interrupted leaves a profile of the videos that it finished, and can go on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import HeadforceError
from ..kvpass.recorder import ModelFacts
from ..policy import Chunk
from ..whole_file import write_whole
from .measured import Pass, Profile, Sample, Video

VERSION = 1
KIND = "headforce profile"
NAME = "profile.json"
STATISTICS = ("mass", "logit", "entropy")


def save_profile(profile: Profile, folder: Path) -> None:
    """Writes a profile. Files of videos that are there already, with the same content, are left alone.

    Raises HF-PROFILE-FILE if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        videos = [_save_video(video, folder) for video in profile.videos]
        index = {
            "kind": KIND,
            "version": VERSION,
            "source": profile.source,
            "weights": profile.weights,
            "model": asdict(profile.model),
            "sample": asdict(profile.sample),
            "videos": videos,
        }
        write_whole(folder / NAME, json.dumps(index, indent=1) + "\n")
    except OSError as error:
        raise _wrong(folder, f"a folder that cannot be written ({error.strerror})", "one that can") from error


def load_profile(folder: Path) -> Profile:
    """The profile in a folder. Raises HF-PROFILE-FILE if it is missing, truncated, foreign, or of another version."""
    path = folder / NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(path, f"a file that cannot be read ({error})", "a profile") from error
    if not isinstance(index, dict) or index.get("kind") != KIND:
        raise _wrong(path, "a file that is no profile", f"one of kind {KIND!r}")
    if index.get("version") != VERSION:
        raise _wrong(path, f"version {index.get('version')!r}", f"version {VERSION}: measure again with this headforce")
    try:
        model, sample = ModelFacts(**index["model"]), Sample(**index["sample"])
        videos = tuple(_load_video(entry, folder, model) for entry in index["videos"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(path, f"an index that is not whole ({type(error).__name__}: {error})", "a profile") from error
    return Profile(model, sample, videos, str(index["source"]), str(index.get("weights", "")))


def _save_video(video: Video, folder: Path) -> dict[str, Any]:
    """Writes the tensors of a video; its entry in the index."""
    tensors = {
        f"{number}.{name}": np.ascontiguousarray(getattr(passed, name), dtype=np.float32)
        for number, passed in enumerate(video.passes)
        for name in STATISTICS
    }
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"video-{digest[:16]}.safetensors"
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)
    return {
        "name": dict(video.name),
        "file": path.name,
        "sha256": digest,
        "passes": [
            {"chunk": [p.chunk.index, p.chunk.start, p.chunk.frames], "step": p.step, "keys": list(p.keys)}
            for p in video.passes
        ],
    }


def _load_video(entry: Mapping[str, Any], folder: Path, model: ModelFacts) -> Video:
    path = folder / Path(entry["file"]).name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _wrong(path, f"a file that cannot be read ({error.strerror})", "the tensors of a video") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise _wrong(path, f"{len(content)} bytes of other content", "the file that the profile was written with")
    try:
        tensors = load(content)
    except SafetensorError as error:  # the index names this content, so whoever wrote it was not us
        raise _wrong(path, f"no tensors ({error})", "a safetensors file") from error
    passes = []
    for number, facts in enumerate(entry["passes"]):
        statistics = [tensors[f"{number}.{name}"] for name in STATISTICS]
        chunk, keys = Chunk(*facts["chunk"]), tuple(facts["keys"])
        shape = statistics[0].shape
        if shape[:2] != (model.layers, model.heads) or shape[-1] != len(keys):
            raise _wrong(path, f"statistics {shape}", f"{model.layers} layers, {model.heads} heads, {len(keys)} frames")
        passes.append(Pass(chunk, int(facts["step"]), keys, *statistics))
    return Video(dict(entry["name"]), tuple(passes))


def _wrong(path: Path, found: str, needed: str) -> HeadforceError:
    return HeadforceError("HF-PROFILE-FILE", site=str(path), found=found, needed=needed)
