"""A script run twice with the same seed, as it is and under a policy, and its videos side by side."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HeadforceError
from ..folder import Folder
from ..policy import Schedule
from .figure import save_figure
from .launcher import Finished, execute
from .metrics import Video, changes, chunk_psnr, discontinuity, frames_of_chunks, peak_of, psnr, squared_errors
from .settings import EAGER, RunSettings
from .video import need_av, pictures, read_video, write_film

SIDES = ("eager", "policy")
OUT = "{out}"
"""Stands in the command, and in the names of its videos, for a folder that each side has for itself."""


@dataclass(frozen=True)
class Wanted:
    """What is compared, and how.

    Attributes:
        command: the script's. videos: a pattern for the files that it writes its videos to.
        out: the folder of results. layout: the axes of tensors, see `read_video`.
        chunks: of a video, where they cannot be told from the model's calls.
        rate: pictures a second of the films that are written.
    """

    command: Sequence[str]
    videos: str
    out: Path
    layout: str | None = None
    chunks: Schedule | None = None
    rate: int = 16


def compare(wanted: Wanted, settings: RunSettings) -> dict[str, Any]:
    """Runs both sides, writes the folder of results and returns the report.

    Raises what `Finished.check` raises for either side, HF-COMPARE where the sides' videos cannot be compared, HF-VIDEO
    where they cannot be read. What the script wrote until then is kept, and standard error says where.
    """
    need_av()
    with Folder(wanted.out, "HF-COMPARE") as folder:
        try:
            report = _compared_sides(wanted, settings, folder)
            folder.publish()
        except BaseException:  # an interrupt too: a side may have taken hours
            kept = folder.rescue(SIDES)
            if kept is not None:
                print(f"headforce: the comparison is not finished; what the script wrote is in {kept}", file=sys.stderr)
            raise
    return report


def _compared_sides(wanted: Wanted, settings: RunSettings, folder: Folder) -> dict[str, Any]:
    """Runs both sides and writes all results to the staging of `folder`; the report."""
    runs, files = {}, {}
    for side in SIDES:
        own = settings if side != EAGER else replace(settings, mode=EAGER)
        runs[side], files[side] = _run(side, wanted, own, folder.staging / side)
    known = [wanted.chunks.sizes] if wanted.chunks else _chunks(runs["policy"])
    videos: list[dict[str, Any]] = []
    for name, reference, video in _videos(files, wanted.layout):
        own_name = _free(name, {made["name"] for made in videos})
        videos.append(_compared(own_name, reference, video, known, folder.staging, wanted.rate))
    report = {
        "version": 1,
        "seed": settings.seed,
        "videos": videos,
        "motion": "frame difference, in place of the optical flow of the paper",
        "runs": {side: run.to_json() for side, run in runs.items()},
    }
    folder.write_json("compare.json", report)
    return report


def _run(side: str, wanted: Wanted, settings: RunSettings, folder: Path) -> tuple[Finished, dict[str, Path]]:
    """One side, and its videos by name, which are moved to `folder`."""
    folder.mkdir()
    pattern = wanted.videos.replace(OUT, str(folder))
    before = _stamps(pattern)
    finished = execute([word.replace(OUT, str(folder)) for word in wanted.command], settings)
    if finished.code:
        raise HeadforceError(
            "HF-COMPARE",
            site=f"side {side}",
            found=f"a script that ended with {finished.code}",
            needed="one that ends well",
        )
    finished.check()
    after = _stamps(pattern)
    made = sorted(path for path, stamp in after.items() if before.get(path) != stamp)
    if not made:
        raise HeadforceError(
            "HF-COMPARE", site=f"side {side}", found=f"no new file {wanted.videos}", needed="the videos of the script"
        )
    if not all(path.is_relative_to(folder) for path in made):
        made = _moved(made, folder)
    return finished, {str(path.relative_to(folder)): path for path in made}


def _stamps(pattern: str) -> dict[Path, tuple[int, int]]:
    found = [Path(name).resolve() for name in glob(pattern, recursive=True)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in found if path.is_file()}


def _moved(files: Sequence[Path], folder: Path) -> list[Path]:
    above = os.path.commonpath([file.parent for file in files])
    places = [folder / file.relative_to(above) for file in files]
    for file, place in zip(files, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, place)
    return places


def _videos(files: dict[str, dict[str, Path]], layout: str | None) -> Iterator[tuple[str, Video, Video]]:
    """The name of each video, and the video of both sides."""
    for name, *both in _pairs(files):
        eager, policy = (read_video(path, layout) for path in both)
        if len(eager) != len(policy):
            raise HeadforceError(
                "HF-COMPARE", site=name, found=f"{len(eager)} videos and {len(policy)}", needed="as many of both sides"
            )
        for row, (reference, video) in enumerate(zip(eager, policy, strict=True)):
            yield f"{name}-{row}" if len(eager) > 1 else name, reference, video


def _pairs(files: dict[str, dict[str, Path]]) -> list[tuple[str, Path, Path]]:
    """Names, and the files of both sides. Names with a time in them differ, and are paired in their order."""
    eager, policy = (files[side] for side in SIDES)
    if len(eager) != len(policy):
        raise HeadforceError(
            "HF-COMPARE",
            found=f"{len(eager)} videos of the eager side and {len(policy)} of the other",
            needed="as many of both",
        )
    both = list(zip(sorted(eager), sorted(policy), strict=True))
    names = _names([one for one, _ in both])
    return [(name, eager[one], policy[other]) for name, (one, other) in zip(names, both, strict=True)]


def _names(files: Sequence[str]) -> list[str]:
    """A name for each file, with dashes for folders, and with the suffix where files differ in nothing else."""
    whole = [file.replace(os.sep, "-") for file in files]
    short = [os.path.splitext(name)[0] for name in whole]
    return [one if short.count(one) == 1 else name for one, name in zip(short, whole, strict=True)]


def _free(name: str, taken: Container[str]) -> str:
    """The name, with a number behind it if it is taken: a folder, a suffix and a row of a batch can look alike."""
    return next(one for one in chain([name], (f"{name}-{i}" for i in count(2))) if one not in taken)


def _chunks(finished: Finished) -> list[tuple[int, ...]]:
    """The different ways in which the script's videos were cut into chunks, in latent frames."""
    return list(dict.fromkeys(tuple(video) for model in finished.models for video in model["videos"]))


def _compared(
    name: str, reference: Video, video: Video, known: Sequence[Sequence[int]], folder: Path, rate: int
) -> dict[str, Any]:
    """Writes the film and the figure of one video; its part of the report."""
    if reference.shape != video.shape:
        raise HeadforceError(
            "HF-COMPARE", site=name, found=f"videos of {reference.shape} and {video.shape}", needed="one shape"
        )
    fitting = {tuple(sizes) for cut in known if (sizes := frames_of_chunks(cut, len(video))) is not None}
    if len(fitting) != 1:
        raise HeadforceError(
            "HF-COMPARE",
            site=name,
            found=f"a video of {len(video)} frames, and chunks of {', '.join(str(Schedule(tuple(k))) for k in known)}",
            needed="one way to cut the video",
            hint="Say how it is cut with --chunks, in latent frames or in pictures, such as 3x7.",
        )
    chunks, peak = list(fitting.pop()), peak_of(reference)
    errors = squared_errors(reference, video)
    parts = chunk_psnr(errors, chunks, peak)
    deltas = {side: changes(one) for side, one in zip(SIDES, (reference, video), strict=True)}
    jumps = {side: discontinuity(values, len(chunks)) for side, values in deltas.items()}
    low, high = float(reference.min()), float(reference.max())
    both = [pictures(one, low, high) for one in (reference, video)]
    write_film(folder / f"{name}.mp4", np.concatenate(both, axis=2), rate)
    save_figure(chunks, parts, deltas, jumps, folder / f"{name}.png")
    return {
        "name": name,
        "shape": list(video.shape),
        "chunks": chunks,
        "peak": peak,
        "psnr": _finite(psnr(errors, peak)),
        "chunk_psnr": [_finite(part) for part in parts],
        "changes": deltas,
        "discontinuity": jumps,
        "film": f"{name}.mp4",
        "figure": f"{name}.png",
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: None stands for frames that are equal."""
    return value if math.isfinite(value) else None
