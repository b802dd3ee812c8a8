"""Whether a variant of `rollout.py` computes what it says: a short model of full width against float32 references.

The first layers of the model denoise a few chunks, more than fill the window. The reference is the unmodified example
in float32 for dense attention, and for a policy the example with attention that the oracle tells frame by frame what to
read; where heads decide, it replays what the variant decided. A variant may be twice as far from it as the same
reference in the dtype of the run is. How far off a single frame missing from a single head is, is reported besides.
"""

from __future__ import annotations

import copy
import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from sides import DENSE, Settings, Side, Variant, bound_policy, dense_side
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from wan import CHUNK, WINDOW, Video, cut, example, twin

from headforce.demo.reference import Control, Oracle, install_oracle

LAYERS = 3
"""Layers of the short model: Forcing-KV has one that it never groups, one that decides, and one that follows."""

CHUNKS = WINDOW // CHUNK + 2
"""Two chunks more than fill the window."""

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-3}
"""What is allowed on top of twice the error of the reference in the dtype of the run."""


@dataclass
class Checked:
    """Largest relative errors of the flow of a pass: of the variant, what it may be, and with a frame missing."""

    error: float
    allowed: float
    control: float | None


class Checks:
    """Checks variants at one resolution. What several of them need is made once."""

    def __init__(self, model: nn.Module, video: Video, settings: Settings) -> None:
        self.short, self.video, self.settings = cut(model, LAYERS), video, settings
        self.exact = copy.deepcopy(self.short).float()
        self._dense: list[tuple[list[Tensor], float]] | None = None

    @torch.no_grad()
    def __call__(self, variant: Variant) -> Checked:
        """Raises what the variant raises."""
        if variant.meaning in (DENSE, "self_forcing"):
            return self._against_dense(variant)
        return self._against_oracle(variant)

    def _against_dense(self, variant: Variant) -> Checked:
        if self._dense is None:
            exact, plain = (_reference(model, self.settings) for model in (self.exact, self.short))
            self._dense = []
            for chunk in range(CHUNKS):
                flows = self._flows(exact, chunk)
                self._dense.append((flows, self._own(plain, chunk, flows)))
        with closing(variant.build(self.short, self.settings)) as side:
            errors = [error_of(self._flows(side, chunk), self._dense[chunk][0]) for chunk in range(CHUNKS)]
        return self._checked(errors, [own for _, own in self._dense], None)

    def _against_oracle(self, variant: Variant) -> Checked:
        side = variant.build(self.short, self.settings)
        control, policy = Control(LAYERS - 1, 0), bound_policy(variant.meaning, self.short.config)
        oracles = [Oracle(policy, example, side.records, switch) for switch in (control, Control(0, 0))]
        exact, plain = (
            _reference(model, self.settings, oracle)
            for model, oracle in zip((self.exact, self.short), oracles, strict=True)
        )
        errors, own = [], []
        with closing(side):
            for chunk in range(CHUNKS):
                flows = self._flows(side, chunk)
                for oracle in oracles:  # heads may have been classified on the way
                    oracle.policy = side.policy() or policy
                expected = self._flows(exact, chunk)
                errors.append(error_of(flows, expected))
                own.append(self._own(plain, chunk, expected))
            control.on = True
            falsified = error_of(self._flows(exact, CHUNKS - 1)[-1:], expected[-1:])
        return self._checked(errors, own, falsified)

    def _flows(self, side: Side, chunk: int) -> list[Tensor]:
        """A noisy pass of a chunk, and the clean one."""
        first, *_, last = self.video.passes(chunk)
        dtype = next(side.model.parameters()).dtype
        passes = [(x.to(dtype), t) for x, t in (first, last)]
        return side.chunk(chunk, passes, self.video.context.to(dtype))

    def _own(self, plain: Side, chunk: int, expected: list[Tensor]) -> float:
        """The error of the reference in the dtype of the run: none in float32."""
        return 0.0 if self.video.dtype == torch.float32 else error_of(self._flows(plain, chunk), expected)

    def _checked(self, errors: list[float], own: list[float], control: float | None) -> Checked:
        return Checked(
            math.nan if any(map(math.isnan, errors)) else max(errors),
            2 * max(own) + ROUNDING[self.video.dtype],
            control,
        )


def _reference(model: Any, settings: Settings, oracle: Oracle | None = None) -> Side:
    """The example as it is, or as the oracle tells it what to read; float32 without shortcuts."""
    own = twin(model)
    if oracle is not None:
        install_oracle(own, oracle)
    side = dense_side("reference", own, settings.best)
    if own.head.head.weight.dtype == torch.float32:
        # Scores of a whole layer would not fit at 1080p.
        on_gpu = settings.device.type == "cuda"
        side.backend = SDPBackend.EFFICIENT_ATTENTION if on_gpu else SDPBackend.MATH
    return side


def error_of(flows: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of a pass, |flow - expected| / |expected|; NaN if anything is."""
    pairs = zip(flows, expected, strict=True)
    errors = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.nan
