"""Ragged attention by a kernel: shapes and strides in, tensors out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels.config import INTERPRETED, Config, architecture_of, config_of
from ..kernels.spec import LOG2E, Spec
from .bounds import check_bounds, checks_launches
from .codegen import kernel_of, source_of
from .launch import DTYPES, launch, named, prepare_interpreter
from .pool import processors_of
from .schedule import TILE, part_tiles, programs
from .tiles import describable, gluon_tiles, strides, tiles
from .watch import Launch

PORTABLE, HOPPER = "ragged_attention", "hopper_attention"
HOPPER_WIDTHS = (64, 128)


def layer_attention(
    kernel: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
) -> Tensor:
    """What a target is: `attention` with the configuration for the device, and tables as the planner cuts them."""
    if kernel == HOPPER:
        _check_hopper(query, key, value, scale)
    config, room = _config(kernel, query, value), _room(query, reads)
    tables = (reads, runs, theta, first_pair, style, scale)
    return attention(query, key, value, *tables, kernel=kernel, config=config, room=room)[0]


def source_of_launch(kernel: str, launch: Launch) -> str:
    """The text of the kernel that `layer_attention` runs for these operands."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in launch[:3])
    config, parts = _config(kernel, query, value), _room(query, launch.reads) > 0
    return source_of(kernel, _spec((query, key, value), launch.theta, launch.style, config, parts, False))


def _config(kernel: str, query: Tensor, value: Tensor) -> Config:
    """The configuration for the device."""
    if query.device.type == "cpu":
        return INTERPRETED
    return config_of(kernel, architecture_of(query.device), query.shape[-1], value.shape[-1], query.dtype)


def _room(query: Tensor, reads: Tensor) -> int:
    """The tiles of parts into which the planner may have cut reads."""
    batch, tokens, heads, _ = query.shape
    return part_tiles(len(reads), batch * heads, tokens, processors_of(query.device))


def _spec(
    operands: tuple[Tensor, Tensor, Tensor], theta: Tensor, style: str, config: Config, parts: bool, lse: bool
) -> Spec:
    query, key, value = operands
    return Spec(
        dtype=query.dtype,
        cache_dtype=key.dtype,
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        rotation=style if theta.numel() else None,
        parts=parts,
        lse=lse,
        descriptors=config.descriptors and describable(key) and describable(value),
        config=config,
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    reads: Tensor,
    runs: Tensor,
    theta: Tensor,
    first_pair: int,
    style: str,
    scale: float,
    *,
    config: Config,
    kernel: str = PORTABLE,
    room: int = 0,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Ragged attention in one launch; arguments as in `kernels.reference.ragged_attention`.

    Args:
        kernel: PORTABLE or HOPPER.
        room: tiles of `TILE` query rows that all parts of reads that are cut have at most; 0 where no read is cut.

    Returns the output [B, S, H, Dv] and, `with_lse`, the natural log of the sum of exponentials, float32 [B, H, S].
    Raises HF-KERNEL for a device, a dtype or a layout that the kernel does not take, and HF-TABLES as `bounds` says.
    """
    _check(query, key, value, reads, runs, theta)
    if checks_launches():
        rows = key.shape[0] * key.shape[1] if key.dim() == 3 else key.shape[1]
        of_query = {"batch": query.shape[0], "heads": query.shape[2], "tokens": query.shape[1]}
        check_bounds(reads, runs, **of_query, rows=rows, part_tiles=room)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    batch, tokens, heads, _ = query.shape
    if kernel != HOPPER and not scale > 0:  # kernels look for the largest score before they scale
        query, scale = query * ((scale > 0) - (scale < 0)), abs(scale) or 1.0
    spec = _spec((query, key, value), theta, style, config, room > 0, with_lse)
    if kernel == HOPPER:
        _check_hopper(query, key, value, scale)
        _check_hopper_layout(spec, key)
    else:
        prepare_interpreter(query.device)
    out = query.new_zeros((batch, tokens, heads, value.shape[-1]))
    lse = query.new_empty((batch, heads, tokens), dtype=torch.float32) if with_lse else None
    arguments: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "out": out,
        "reads": reads,
        "runs": runs,
        "theta": theta,
        "read_count": len(reads),
        "group": 1 if key.dim() == 3 else heads // key.shape[2],
        "pairs": theta.numel(),
        "first_pair": first_pair,
        "scale": scale * LOG2E,
        **named("query", query.stride()[:3]),
        **named("key", strides(key)),
        **named("value", strides(value)),
        **named("out", out.stride()[:3]),
    }
    if lse is not None:
        arguments |= {"lse": lse, "lse_batch": lse.stride(0), "lse_head": lse.stride(1)}
    if spec.descriptors:
        described = gluon_tiles if kernel == HOPPER else tiles
        arguments |= {"key_tiles": described(key, config.block_n), "value_tiles": described(value, config.block_n)}
    if spec.parts:
        arguments["part_out"] = query.new_empty((room * TILE, spec.block_dv), dtype=torch.float32)
        arguments["part_lse"] = query.new_empty((room * TILE,), dtype=torch.float32)
    grid = (programs(len(reads), batch * heads, tokens, config.block_m, room),)
    if spec.rotation is not None and kernel == PORTABLE:  # the other one has both in shared memory
        arguments["angles"] = query.new_empty((*grid, 2, spec.block_d), dtype=torch.float32)
        arguments["turned"] = query.new_empty((*grid, config.block_m, spec.block_d))
    launch(kernel_of(kernel, spec), grid, arguments, config)
    if spec.parts:
        grid_of_tiles = (-(-tokens // config.block_m), len(reads))
        launch(kernel_of("combine_parts", spec), grid_of_tiles, arguments, replace(config, warps=8))
    return out, lse


def _check(query: Tensor, key: Tensor, value: Tensor, reads: Tensor, runs: Tensor, theta: Tensor) -> None:
    if query.dtype not in DTYPES or key.dtype not in DTYPES or value.dtype != key.dtype:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"a query of {query.dtype} over keys of {key.dtype} and values of {value.dtype}",
            needed="float32, bfloat16 or float16, keys and values alike",
        )
    if reads.dtype != torch.int32 or runs.dtype != torch.int32 or not (reads.is_contiguous() and runs.is_contiguous()):
        raise HeadforceError(
            "HF-KERNEL", found=f"tables of {reads.dtype} and {runs.dtype}", needed="contiguous tables of int32"
        )
    devices = {t.device for t in (query, key, value, reads, runs)} | ({theta.device} if theta.numel() else set())
    if len(devices) > 1:
        raise HeadforceError("HF-KERNEL", found=f"tensors on {sorted(map(str, devices))}", needed="one device")
    if query.shape[-1] != key.shape[-1] or (key.dim() == 4 and query.shape[2] % key.shape[2]):
        raise HeadforceError(
            "HF-KERNEL",
            found=f"a query {tuple(query.shape)} over keys {tuple(key.shape)}",
            needed="heads of one width, and K/V heads that divide the heads of the query",
        )
    if key.dim() == 3 and not (key.is_contiguous() and value.is_contiguous()):
        raise HeadforceError("HF-KERNEL", found=f"pages with strides {key.stride()}", needed="contiguous pages")


def _check_hopper(query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    """HF-KERNEL where the kernel for Hopper cannot run; target `triton` takes what it refuses."""
    on_gpu = query.device.type == "cuda" and not torch.version.hip
    found = architecture_of(query.device) if on_gpu else f"tensors on {query.device.type}"
    if found != "sm90":
        raise HeadforceError("HF-KERNEL", found=found, needed="sm90 (H100, H200), or target triton")
    check_hopper_operands(query, key, value, scale)


def check_hopper_operands(query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
    """HF-KERNEL for operands that the kernel for Hopper does not take on any device."""
    widths = {query.shape[-1], value.shape[-1]}
    if not widths <= set(HOPPER_WIDTHS) or query.dtype == torch.float32 or key.dtype != query.dtype or not scale > 0:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"heads of {sorted(widths)} columns, a query of {query.dtype} over {key.dtype}, scale {scale}",
            needed="bfloat16 or float16, a cache of the same dtype, head dims 64 or 128, and a positive scale, "
            "or target triton",
        )


def _check_hopper_layout(spec: Spec, key: Tensor) -> None:
    """HF-KERNEL for keys and values that no descriptor can name, or whose pages are shorter than a block.

    Of operands nobody can say here how long their runs are; `least_rows` of the target is checked where that is known.
    """
    if not spec.descriptors:
        raise HeadforceError(
            "HF-KERNEL",
            found="keys or values that no tensor descriptor can name",
            needed="rows of equal stride whose addresses are multiples of 16 bytes, or target triton",
        )
    if key.dim() == 3 and key.shape[1] < spec.config.block_n:
        raise HeadforceError(
            "HF-KERNEL",
            found=f"pages of {key.shape[1]} rows",
            needed=f"pages of at least {spec.config.block_n} rows, or target triton",
        )
