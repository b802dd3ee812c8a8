"""The gate that every kernel passes before it meets a device: generated, compiled ahead of time, read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..kernels.aot import TYPES, Compiled, compile_kernel
from ..kernels.config import Config, block_width, config_of
from ..kernels.rotation import INTERLEAVED
from ..kernels.spec import Spec
from .codegen import kernels_of, source_of


def spec_for(
    architecture: str, dtype: torch.dtype, head_dim: int, *, rotated: bool = True, config: Config | None = None
) -> Spec:
    """The spec of the kernel that a launch would take for such heads, cut into parts and without lse."""
    width = block_width(head_dim)
    config = config or config_of(architecture, width, width, dtype)
    return Spec(
        dtype=dtype,
        cache_dtype=dtype,
        head_dim=head_dim,
        value_dim=head_dim,
        rotation=INTERLEAVED if rotated else None,
        parts=True,
        lse=False,
        descriptors=config.descriptors and head_dim == width,
        config=config,
    )


def compile_attention(spec: Spec, architecture: str) -> Compiled:
    """The portable kernel, compiled for an architecture of `kernels.config.ARCHITECTURES`; see `compile_kernel`."""
    return compile_kernel(kernels_of(spec).ragged_attention, spec, architecture)


def compile_combine(spec: Spec, architecture: str) -> Compiled:
    """The kernel that puts parts together."""
    return compile_kernel(kernels_of(replace(spec, parts=True)).combine_parts, spec, architecture)


def compile_all(
    architectures: Iterable[str], dtypes: Iterable[torch.dtype] = tuple(TYPES), head_dims: Iterable[int] = (64, 128)
) -> list[Compiled]:
    """Every kernel for every architecture, dtype and head dim, with and without rotation."""
    found = []
    dtypes, head_dims = tuple(dtypes), tuple(head_dims)
    for architecture in architectures:
        for dtype in dtypes:
            for dim in head_dims:
                specs = [spec_for(architecture, dtype, dim, rotated=rotated) for rotated in (False, True)]
                found += [compile_attention(spec, architecture) for spec in specs]
                found.append(compile_combine(specs[0], architecture))
    return found


def save(compiled: Iterable[Compiled], folder: Path) -> list[dict[str, Any]]:
    """Writes every binary, every source and `report.json` to a folder; the report, which names the files."""
    folder.mkdir(parents=True, exist_ok=True)
    report = []
    for kernel in compiled:
        binary = folder / kernel.file_name
        binary.write_bytes(kernel.binary)
        source = binary.with_suffix(".py")
        source.write_text(source_of(kernel.spec), encoding="utf-8")
        report.append({**kernel.to_json(), "binary": binary.name, "source": source.name})
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
