"""Measuring a model: it makes its videos under the probe, and each is written down when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import HeadforceError
from ..kvpass.probe import probe
from .file import NAME, load_profile, save_profile
from .measured import Profile, Sample, collect
from .progress import Progress
from .rollouts import Rollouts, weights_of


def measure(
    rollouts: Rollouts,
    folder: Path,
    *,
    sample: Sample,
    source: str = "",
    fresh: bool = False,
    options: Mapping[str, Any] | None = None,
    blocks: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Profile:
    """Makes the videos and measures them; the profile, which is in `folder` then.

    Videos that the folder has already, measured alike, are not made again, so a run that was interrupted goes on.

    Args:
        sample: how queries are sampled. source: what is measured, as the user named it.
        options: of the backend. blocks: see `Session.compile`.
        fresh: makes all videos anew, whatever the folder has. say: is told which videos are not made again.

    Raises HF-PROFILE-FILE if the folder has a profile of something else, or of other weights, HF-PROFILE-DATA if a pass
    was not compiled, and what compiling and running the model raise.
    """
    known = None if fresh or not (folder / NAME).exists() else load_profile(folder)
    if known is not None and (known.sample, known.source) != (sample, source):
        raise HeadforceError(
            "HF-PROFILE-FILE",
            site=str(folder),
            found=f"a profile of {known.source!r} with {known.sample}",
            needed=f"one of {source!r} with {sample}, or another folder, or a fresh start",
        )
    weights = weights_of(rollouts.model)
    if known is not None and known.weights not in ("", weights):
        raise HeadforceError(
            "HF-PROFILE-FILE",
            site=str(folder),
            found=f"a profile of {source!r} with other weights",
            needed="one of this model, or another folder, or a fresh start",
        )
    names = [dict(video.name) for video in known.videos] if known is not None else []
    missing = [name for name in rollouts.names if not _has(names, name)]
    there = len(rollouts.names) - len(missing)
    if there:
        say(f"using {there} video{'s' * (there > 1)} measured before in {folder} (--fresh measures anew)")
    if known is not None and not missing:
        return known
    bars = progress or Progress(silent=True)
    with probe(rollouts.model, queries=sample.queries, seed=sample.seed, by_query=sample.by_query) as probed, bars:
        probed.compile(blocks=blocks, **(options or {}))
        bars.begin(len(rollouts.names), there)
        probed.recorder.on_pass = bars.advance
        for name in missing:
            rollouts.make(name)
            if probed.misses:
                raise HeadforceError(
                    "HF-PROFILE-DATA",
                    site=f"video {name}",
                    found=f"{probed.misses} layers that ran without being measured, as a pass was not compiled",
                    needed="every pass compiled by headforce (TORCH_LOGS=recompiles,graph_breaks)",
                )
            known = _joined(known, replace(collect(probed.recorder, name), source=source, weights=weights), folder)
            probed.recorder.clear()
            save_profile(known, folder)
            bars.finished()
    assert known is not None
    return known


def _has(names: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> bool:
    """Whether a video of this name is there; one that has batch rows besides has all of them."""
    return any({key: name[key] for key in name if key != "video"} == dict(wanted) for name in names)


def _joined(known: Profile | None, more: Profile, folder: Path) -> Profile:
    if known is None:
        return more
    if known.model != more.model:
        raise HeadforceError(
            "HF-PROFILE-FILE", site=str(folder), found=f"a profile of {known.model}", needed=f"one of {more.model}"
        )
    return replace(known, videos=(*known.videos, *more.videos))
