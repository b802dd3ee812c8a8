"""The gate that every kernel passes before it meets a device: generated, compiled ahead of time, read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..kernels.aot import TYPES, Compiled, compile_kernel
from ..kernels.config import Config, block_width, config_of
from ..kernels.rotation import INTERLEAVED
from ..kernels.spec import Spec
from .codegen import kernel_of, source_of
from .launch import HOPPER, HOPPER_WIDTHS, PORTABLE, WRITE


def spec_for(
    kernel: str,
    architecture: str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    rotated: bool = True,
    config: Config | None = None,
) -> Spec:
    """The spec of the kernel that a launch would take for such heads, cut into parts and without lse."""
    config = config or config_of(kernel, architecture, head_dim, head_dim, dtype)
    return Spec(
        dtype=dtype,
        cache_dtype=dtype,
        head_dim=head_dim,
        value_dim=head_dim,
        rotation=INTERLEAVED if rotated else None,
        parts=True,
        lse=False,
        descriptors=config.descriptors and head_dim == block_width(head_dim),
        config=config,
    )


def compiled(kernel: str, spec: Spec, architecture: str) -> Compiled:
    """A kernel of a spec for an architecture of `kernels.config.ARCHITECTURES`; see `kernels.aot.compile_kernel`."""
    return compile_kernel(kernel_of(kernel, spec), spec, architecture)


def compile_all(
    architectures: Iterable[str], dtypes: Iterable[torch.dtype] = tuple(TYPES), head_dims: Iterable[int] = (64, 128)
) -> list[Compiled]:
    """Every kernel for every architecture, dtype and head dim that it takes, with and without rotation."""
    found = []
    dtypes, head_dims = tuple(dtypes), tuple(head_dims)
    for architecture, dtype, dim in product(architectures, dtypes, head_dims):
        tiers = [PORTABLE]
        if architecture == "sm90" and dtype != torch.float32 and dim in HOPPER_WIDTHS:
            tiers.append(HOPPER)
        for kernel in tiers:
            specs = [spec_for(kernel, architecture, dtype, dim, rotated=rotated) for rotated in (False, True)]
            found += [compiled(kernel, spec, architecture) for spec in specs]
        found.append(compiled("combine_parts", spec_for(PORTABLE, architecture, dtype, dim), architecture))
        write = spec_for(PORTABLE, architecture, dtype, dim, config=WRITE)
        found.append(compiled("rotate_and_write", write, architecture))
    return found


def save(kernels: Iterable[Compiled], folder: Path) -> list[dict[str, Any]]:
    """Writes every binary, every source and `report.json` to a folder; the report, which names the files."""
    folder.mkdir(parents=True, exist_ok=True)
    report = []
    for kernel in kernels:
        binary = folder / kernel.file_name
        binary.write_bytes(kernel.binary)
        source = binary.with_suffix(".py")
        source.write_text(source_of(kernel.kernel, kernel.spec), encoding="utf-8")
        report.append({**kernel.to_json(), "binary": binary.name, "source": source.name})
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
