"""Profiles that are made up, for tests of what is made of them."""

from __future__ import annotations

import numpy as np

from headforce.kvpass.recorder import ModelFacts
from headforce.policy import Chunk
from headforce.profile.measured import Pass, Profile, Sample, Video

WINDOW = 21


def passed(mass, logit=None, *, chunk=10, frames=3, step=0, window=WINDOW, sink=0):
    """A pass over a chunk that reads `window` frames: the first `sink` and the newest others.

    mass and logit are [layers, heads, keys].
    """
    at = Chunk(chunk, chunk * frames, frames)
    newest = range(max(0, at.stop - window + sink), at.stop)
    keys = (*range(min(sink, newest[0])), *newest)
    mass = np.asarray(mass, np.float32)
    mass = mass / mass.sum(-1, keepdims=True)
    logit = np.zeros_like(mass) if logit is None else np.asarray(logit, np.float32)
    assert mass.shape[-1] == len(keys)
    entropy = -mass * np.log(np.maximum(mass, 1e-30))
    return Pass(at, step, keys, mass[:, :, None], logit[:, :, None], entropy[:, :, None])


def profile(*videos, names=None, frame_bytes=1000, source="made up"):
    """A profile of videos that are lists of passes."""
    layers, heads = videos[0][0].mass.shape[:2]
    names = names or [{"seed": i} for i in range(len(videos))]
    made = tuple(Video(name, tuple(passes)) for name, passes in zip(names, videos, strict=True))
    return Profile(ModelFacts(layers, heads, 12, frame_bytes), Sample(0.25, 0, False), made, source)


def random_video(layers=2, heads=6, chunks=(0, 1, 5, 6, 7, 8), steps=2, seed=0, window=WINDOW):
    """Passes with peaked attention of no kind in particular."""
    rng = np.random.default_rng(seed)
    made = []
    for chunk in chunks:
        keys = min(window, 3 * (chunk + 1))
        for step in range(steps):
            shape = (layers, heads, keys)
            mass, logit = rng.dirichlet([0.3] * keys, shape[:2]), rng.normal(0, 1, shape)
            made.append(passed(mass, logit, chunk=chunk, step=step, window=window))
    return made
