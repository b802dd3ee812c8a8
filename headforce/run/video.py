"""Videos in files: read as arrays [frames, height, width, channels], written as mp4.

Films go through PyAV, the optional part `headforce[video]`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HeadforceError
from .metrics import Video

ARRAYS = (".npy", ".pt", ".pth", ".safetensors")
LAYOUTS = {5: "BFCHW", 4: "FCHW", 3: "FHW"}
"""The axes of a tensor with so many dims, unless somebody says otherwise."""
_AXES = "a letter for each dim (frames F, height H, width W; batch B and channels C)"
SMALLEST = 240
"""Rows of a film: smaller videos, such as latents, are shown enlarged."""


def need_av() -> Any:
    """PyAV; HF-VIDEO if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise HeadforceError(
            "HF-VIDEO",
            found=f"no package av ({error})",
            needed="PyAV, to read and write films",
            hint="Install it with: pip install 'headforce[video]'.",
        ) from error
    return av


def read_video(path: Path, layout: str | None = None) -> list[Video]:
    """The videos in a file: one of a film, and one for each row of the batch of a tensor.

    Args:
        path: a film (mp4 and whatever else FFmpeg reads), or one tensor as .npy, .pt or .safetensors.
        layout: the axes of a tensor, such as "BCFHW"; without B or C it has one row or channel.

    HF-VIDEO for what cannot be read.
    """
    if path.suffix.lower() in ARRAYS:
        return _in_order(_array(path), layout, path)
    av = need_av()
    try:
        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable(path, str(error)) from error
    if not frames:
        raise _unreadable(path, "no frames")
    return [np.stack(frames)]


def check_layout(layout: str) -> None:
    """HF-VIDEO for letters that are no axes of a video, whatever the file is."""
    if not _are_axes(layout.upper()):
        raise HeadforceError("HF-VIDEO", site="--layout", found=repr(layout), needed=_AXES)


def _are_axes(axes: str) -> bool:
    return {"F", "H", "W"} <= set(axes) <= set("BFCHW") and len(set(axes)) == len(axes)


def write_film(path: Path, video: Video, rate: int) -> None:
    """Writes 8-bit pictures [frames, height, width, 3] as H.264 in mp4, `rate` of them a second."""
    av = need_av()
    scale = math.ceil(SMALLEST / video.shape[1])
    video = video.repeat(scale, axis=1).repeat(scale, axis=2)
    # Chroma has half as many rows and columns, so both have to be even.
    video = np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4") as film:
        stream = film.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in video:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        film.mux(stream.encode())


def pictures(video: Video, low: float, high: float) -> Video:
    """8-bit pictures of a video, [frames, height, width, 3]: of other values than bytes `low` is black and `high` is
    white, and of more channels than three, as latents have, the first three are seen."""
    if video.dtype != np.uint8:
        video = (np.clip((video - low) / ((high - low) or 1.0), 0, 1) * 255).round().astype(np.uint8)
    return video[..., [min(channel, video.shape[-1] - 1) for channel in range(3)]]


def _array(path: Path) -> Video:
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            held: Any = load_file(path)
        else:
            import torch

            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each library has its own
        raise _unreadable(path, str(error)) from error
    tensors = list(held.values()) if isinstance(held, dict) else [held]
    if len(tensors) != 1 or not hasattr(tensors[0], "numpy"):
        raise _unreadable(path, f"{len(tensors)} entries")
    tensor = tensors[0].detach()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def _in_order(array: Video, layout: str | None, path: Path) -> list[Video]:
    axes = (layout or LAYOUTS.get(array.ndim, "")).upper()
    if len(axes) != array.ndim or not _are_axes(axes):
        raise HeadforceError(
            "HF-VIDEO",
            site=str(path),
            found=f"a tensor of shape {tuple(array.shape)}" + (f" and the layout {layout}" if layout else ""),
            needed=_AXES,
            hint="Say what the dims are with --layout, such as BCFHW.",
        )
    if not np.isfinite(array).all():
        raise _unreadable(path, "values that are not finite")
    for missing in set("BC") - set(axes):
        array, axes = array[None], missing + axes
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    return list(array.transpose([axes.index(axis) for axis in "BFHWC"]))


def _unreadable(path: Path, found: str) -> HeadforceError:
    return HeadforceError(
        "HF-VIDEO", site=str(path), found=found, needed="a film, or a file with one tensor of numbers in it"
    )
