"""What `ema_sink` makes of frames: the tensors behind `op.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headforce.errors import HeadforceError
from headforce.lowering.state.making import maker
from headforce.lowering.state.rows import Rows
from headforce.lowering.state.turning import Turning
from headforce.policy import Part

from .op import EmaSink


@maker("ema_sink")
def blended(rows: Rows, op: EmaSink, parts: Sequence[Part], turning: Turning) -> tuple[Tensor, Tensor]:
    """The places of the sink with all that is new blended in, frame by frame, in float32 at least.

    A frame's keys are moved in time to where the place stands. At one place in the frame the spatial rotation of all
    keys is the same, so this blends keys as they were before RoPE. Raises HF-ROPE where no RoPE is known.
    """
    if not len(turning.theta):
        raise HeadforceError("HF-ROPE", found=f"{op}, and keys of unknown rotation", needed="a recognised RoPE")
    made = [_place(rows, op, part, turning) for part in parts]
    return torch.stack([k for k, _ in made], dim=1), torch.stack([v for _, v in made], dim=1)


def _place(rows: Rows, op: EmaSink, part: Part, turning: Turning) -> tuple[Tensor, Tensor]:
    """Keys and values [C, T, D] of one place."""
    known = [frames for frames, *_ in rows.places if part.frames[: len(frames)] == frames]
    old = max(known, key=len, default=())
    begun: list[Tensor] | None = None
    if old:
        place = rows.places[old, part.index, part.of]
        begun = [_wide(rows.take(pool, [place], part.of)[:, 0]) for pool in (rows.k, rows.v)]
    for frame in part.frames[len(old) :]:
        k, v = (_wide(rows.take(pool, [rows.page[frame]], 1)[:, 0]) for pool in (rows.k, rows.v))
        k = turning.moved(k, torch.full((len(k),), part.at - frame, device=k.device)).to(k.dtype)
        if begun is None:
            begun = [k, v]
        else:
            begun = [op.decay * held + (1 - op.decay) * new for held, new in zip(begun, (k, v), strict=True)]
    assert begun is not None
    return begun[0], begun[1]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
