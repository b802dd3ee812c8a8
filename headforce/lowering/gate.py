"""The gate that every kernel passes before it meets a device: generated, compiled ahead of time, read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..kernels.aot import TYPES, Compiled, compile_kernel, file_stem
from ..kernels.config import Config, block_width, config_of
from ..kernels.rotation import INTERLEAVED
from ..kernels.spec import Spec
from .attention import HOPPER, HOPPER_WIDTHS, PORTABLE
from .codegen import kernel_of, source_of
from .rotate_and_write import WRITE


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


Kernel = tuple[str, Spec, str]
"""A kernel by name, its spec, and the architecture that it is for."""


def all_kernels(
    architectures: Iterable[str], dtypes: Iterable[torch.dtype] = tuple(TYPES), head_dims: Iterable[int] = (64, 128)
) -> Iterator[Kernel]:
    """Every kernel for every architecture, dtype and head dim that it takes, with and without rotation."""
    for architecture, dtype, dim in product(tuple(architectures), tuple(dtypes), tuple(head_dims)):
        tiers = [PORTABLE]
        if architecture == "sm90" and dtype != torch.float32 and dim in HOPPER_WIDTHS:
            tiers.append(HOPPER)
        for kernel, rotated in product(tiers, (False, True)):
            yield kernel, spec_for(kernel, architecture, dtype, dim, rotated=rotated), architecture
        yield "combine_parts", spec_for(PORTABLE, architecture, dtype, dim), architecture
        yield "rotate_and_write", spec_for(PORTABLE, architecture, dtype, dim, config=WRITE), architecture


def save_sources(kernels: Iterable[Kernel], folder: Path) -> list[Path]:
    """Writes the source of every kernel to a folder, under the name that its binary has in `save`; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kernel, spec, architecture in kernels:
        file = folder / f"{file_stem(kernel, spec, architecture)}.py"
        file.write_text(source_of(kernel, spec), encoding="utf-8")
        files.append(file)
    return files


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
