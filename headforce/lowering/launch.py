"""Launching the kernels of ragged attention: shapes and strides in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import HeadforceError
from ..kernels import interpreter
from ..kernels.config import Config
from ..kernels.spec import LOG2E, Spec
from .codegen import kernels_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    most_parts: int = 1,
    workspace_rows: int = 0,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Ragged attention by the portable kernel; arguments as in `kernels.reference.ragged_attention`.

    Args:
        most_parts: bounds the parts that `reads` may name; 1 where no read is cut.
        workspace_rows: query rows that all parts of all reads that are cut take together.

    Returns the output [B, S, H, Dv] and, `with_lse`, the natural log of the sum of exponentials, float32 [B, H, S].
    Raises HF-KERNEL for a device, a dtype or a layout that the kernel does not take.
    """
    _check(query, key, value, reads, runs, theta)
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    batch, tokens, heads, dim = query.shape
    out = query.new_zeros((batch, tokens, heads, value.shape[-1]))
    lse = query.new_empty((batch, heads, tokens), dtype=torch.float32) if with_lse else None
    spec = Spec(
        dtype=query.dtype,
        cache_dtype=key.dtype,
        head_dim=dim,
        value_dim=value.shape[-1],
        rotation=style if theta.numel() else None,
        parts=most_parts > 1,
        lse=with_lse,
        descriptors=config.descriptors and all(_describable(t) for t in (key, value)),
        config=config,
    )
    kernels = kernels_of(spec)
    arguments: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "out": out,
        "lse": lse,
        "reads": reads,
        "runs": runs,
        "theta": theta,
        "group": 1 if key.dim() == 3 else heads // key.shape[2],
        "pairs": theta.numel(),
        "first_pair": first_pair,
        "scale": scale * LOG2E,
        **_named("query", query.stride()[:3]),
        **_named("key", _strides(key)),
        **_named("value", _strides(value)),
        **_named("out", out.stride()[:3]),
    }
    if lse is not None:
        arguments |= {"lse_batch": lse.stride(0), "lse_head": lse.stride(1)}
    if spec.descriptors:
        arguments |= {"key_tiles": _tiles(key, config), "value_tiles": _tiles(value, config)}
    if spec.parts:
        arguments["part_out"] = query.new_empty((workspace_rows, spec.block_dv), dtype=torch.float32)
        arguments["part_lse"] = query.new_empty((workspace_rows,), dtype=torch.float32)
    grid = (-(-tokens // config.block_m), len(reads), most_parts)
    _launch(kernels.ragged_attention, grid, arguments, config)
    if spec.parts:
        _launch(kernels.combine_parts, grid[:2], arguments, config)
    return out, lse


def _launch(kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], config: Config) -> None:
    """A kernel has only the arguments that its spec needs."""
    chosen = {name: arguments[name] for name in kernel.arg_names}
    kernel[grid](**chosen, num_warps=config.warps, num_stages=config.stages)


def _named(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    return {f"{name}_{axis}": stride for axis, stride in zip(("batch", "row", "head"), strides, strict=True)}


def _strides(source: Tensor) -> tuple[int, int, int]:
    """Elements from one batch row, row and K/V head to the next; pages are one long column of rows."""
    if source.dim() == 3:
        return 0, source.stride(1), 0
    return source.stride(0), source.stride(1), source.stride(2)


def _describable(source: Tensor) -> bool:
    """Whether keys or values are rows and columns of one matrix, in blocks that a tensor descriptor can name.

    The matrix has a row for each stride of a row. The offset of every batch row and head must then be a row and a
    column, with all columns of the head inside the matrix; addresses must be multiples of 16 bytes.
    """
    width = source.shape[-1]
    batch, row, head = _strides(source)
    if width & (width - 1) or width < 16 or width * source.element_size() < 32 or row == 0:
        return False
    if any(stride * source.element_size() % 16 for stride in (batch, row, head)) or source.data_ptr() % 16:
        return False
    if source.dim() == 3:
        return True
    heads = range(source.shape[2])
    return batch % row == 0 and all(h * head % row + width <= row for h in heads)


def _tiles(source: Tensor, config: Config) -> Any:
    """A descriptor of the matrix of `_describable`, whose blocks are `block_n` rows of one head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, row, head = _strides(source)
    width = source.shape[-1]
    if source.dim() == 3:
        rows, columns = source.shape[0] * source.shape[1], width
    else:
        heads = range(source.shape[2])
        last = (source.shape[0] - 1) * batch // row + max(h * head // row for h in heads)
        rows = last + source.shape[1]
        columns = max(h * head % row for h in heads) + width
    return TensorDescriptor(source, [rows, columns], [row, 1], [config.block_n, width])


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
    if query.device.type == "cpu":
        if not interpreter.enabled():
            raise HeadforceError(
                "HF-KERNEL",
                found="tensors on the CPU",
                needed="a GPU, or TRITON_INTERPRET=1 set before triton is imported",
            )
        interpreter.install()
    if key.dim() == 3 and not (key.is_contiguous() and value.is_contiguous()):
        raise HeadforceError("HF-KERNEL", found=f"pages with strides {key.stride()}", needed="contiguous pages")
