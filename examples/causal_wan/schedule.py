"""Flow matching: which noise levels a chunk passes through, and how to move between them.

At timestep t the latents are ``(1 - sigma) * clean + sigma * noise`` with ``sigma = t / 1000``, and the model predicts
the flow ``noise - clean``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

TRAIN_TIMESTEPS = 1000


def warp_timesteps(timesteps: Sequence[float], shift: float) -> tuple[float, ...]:
    """Move evenly spaced timesteps towards the noisy end: sigma becomes ``shift * sigma / (1 + (shift - 1) * sigma)``.

    >>> [round(t, 2) for t in warp_timesteps([1000, 750, 500, 250], shift=5)]
    [1000.0, 937.5, 833.33, 625.0]
    """
    sigmas = (t / TRAIN_TIMESTEPS for t in timesteps)
    return tuple(TRAIN_TIMESTEPS * shift * s / (1 + (shift - 1) * s) for s in sigmas)


# The four steps of Self-Forcing (arXiv 2506.08009).
SELF_FORCING_TIMESTEPS = warp_timesteps((1000, 750, 500, 250), shift=5.0)


def x0_from_flow(flow: Tensor, x_t: Tensor, t: float) -> Tensor:
    """The clean latents that the flow at x_t points to. Any shape; float64 inside, the dtype of ``flow`` outside."""
    return (x_t.double() - t / TRAIN_TIMESTEPS * flow.double()).to(flow.dtype)


def renoise(x0: Tensor, noise: Tensor, t: float) -> Tensor:
    """Clean latents brought to timestep t with fresh noise. Any shape; float32 inside, the dtype of ``x0`` outside."""
    sigma = t / TRAIN_TIMESTEPS
    return ((1 - sigma) * x0.float() + sigma * noise.float()).to(x0.dtype)
