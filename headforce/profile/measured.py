"""What was measured: for every pass of every video, how much each head attends to each frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..errors import HeadforceError
from ..kvpass.recorder import ModelFacts, Recorder, VideoRecord
from ..policy import Chunk

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of one video; see `kernels.attention_statistics.Statistics`.

    Attributes:
        chunk: what was denoised. step: the passes of this chunk before it. keys: the frames that were read, rising, the
            chunk's own last.
        mass, logit, entropy: [layers, heads, G, keys], for each of G query frames, or with G = 1 for all together.
    """

    chunk: Chunk
    step: int
    keys: tuple[int, ...]
    mass: Floats
    logit: Floats
    entropy: Floats

    @property
    def past(self) -> tuple[int, ...]:
        """The frames before the chunk."""
        return self.keys[: len(self.keys) - self.chunk.frames]

    def on(self, frames: Iterable[int]) -> Floats:
        """The probability on some frames, [layers, heads]; frames that were not read have none."""
        wanted = set(frames)
        picked = [i for i, frame in enumerate(self.keys) if frame in wanted]
        return self.mass[..., picked].sum(-1).mean(-1)

    @property
    def logits(self) -> Floats:
        """The mean score of every past frame, [layers, heads, G, past]."""
        return self.logit[..., : len(self.past)]

    @property
    def logits_in_a_row(self) -> Floats:
        """Of `logits`, those of the newest frames without a gap: a sink, whose frames are far behind, is left out."""
        gaps = np.flatnonzero(np.diff(self.past) != 1)
        return self.logits[..., gaps[-1] + 1 if gaps.size else 0 :]


@dataclass(frozen=True, eq=False)
class Video:
    """The passes of one video, in order. `name`: what it was made from, such as {"prompt": 0, "seed": 1}."""

    name: Mapping[str, int | str]
    passes: tuple[Pass, ...]

    @property
    def chunks(self) -> list[int]:
        """The chunks that were measured, by index."""
        return list(dict.fromkeys(passed.chunk.index for passed in self.passes))

    def at(self, chunk: int = -1, step: int = -1) -> Pass:
        """A pass of a chunk, both counted as Python does: by default the last pass of the last chunk.

        Raises HF-PROFILE-DATA if there is none.
        """
        try:
            index = self.chunks[chunk] if chunk < 0 else chunk
            return [passed for passed in self.passes if passed.chunk.index == index][step]
        except IndexError as error:
            raise HeadforceError(
                "HF-PROFILE-DATA",
                site=f"video {dict(self.name)}",
                found=f"no pass {step} of chunk {chunk}",
                needed=f"one of {len(self.passes)} passes over chunks {self.chunks}",
            ) from error


@dataclass(frozen=True)
class Sample:
    """How queries were sampled: see `headforce.probe`."""

    queries: float
    seed: int
    by_query: bool


@dataclass(frozen=True, eq=False)
class Profile:
    """Videos of one model, measured alike.

    `source`: what was measured, as the user named it. `weights`: see `rollouts.weights_of`; empty if nobody knows.
    """

    model: ModelFacts
    sample: Sample
    videos: tuple[Video, ...]
    source: str = ""
    weights: str = ""

    def passes(self, chunk: int = -1, step: int = -1) -> Iterator[Pass]:
        """The same pass of every video; see `Video.at`. HF-PROFILE-DATA if a video lacks it, or there is none."""
        if not self.videos:
            raise HeadforceError("HF-PROFILE-DATA", found="no video", needed="at least one")
        return (video.at(chunk, step) for video in self.videos)


def collect(recorder: Recorder, name: Mapping[str, int | str] | None = None) -> Profile:
    """What a recorder has, fetched from the device. Every row of a batch is a video.

    Args:
        name: of the videos; with several, a number is added.

    Raises HF-PROFILE-DATA if nothing was recorded, if a pass lacks a layer, or for numbers that are not finite.
    """
    if recorder.model is None or not recorder.videos:
        raise HeadforceError("HF-PROFILE-DATA", found="no pass that was measured", needed="a rollout that is compiled")
    model = recorder.model
    found = [passes for record in recorder.videos for passes in _rows(record, model.layers)]
    many = len(found) > 1
    videos = (Video({**(name or {}), **({"video": i} if many else {})}, passes) for i, passes in enumerate(found))
    return Profile(model, Sample(recorder.queries, recorder.seed, recorder.by_query), tuple(videos))


def _rows(record: VideoRecord, layers: int) -> Iterator[tuple[Pass, ...]]:
    """The passes of every row of a batch."""
    fetched = []
    for passed in record.passes:
        if len(passed.statistics) != layers:
            raise HeadforceError(
                "HF-PROFILE-DATA",
                site=f"chunk {passed.chunk.index}, pass {passed.step}",
                found=f"{len(passed.statistics)} layers",
                needed=f"all {layers} of the model, compiled by headforce",
            )
        stacked = torch.stack([passed.statistics[layer] for layer in range(layers)], dim=1).cpu().numpy()
        if not np.isfinite(stacked).all():
            raise HeadforceError(
                "HF-PROFILE-DATA",
                site=f"chunk {passed.chunk.index}, pass {passed.step}",
                found="attention that is not finite",
                needed="a model whose queries and keys are numbers",
            )
        fetched.append(stacked)  # [3, L, B, H, G, F]
    for row in range(record.batch):
        yield tuple(
            Pass(passed.chunk, passed.step, passed.keys, *stacked[:, :, row])
            for passed, stacked in zip(record.passes, fetched, strict=True)
        )
