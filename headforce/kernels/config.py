"""How a kernel is cut into tiles, by architecture and shape.

What was measured is in a table that `headforce tune` fills on a device: the file that `HEADFORCE_TUNING` names, or
else `tuning.json`. Where it has no entry, the first of `candidates` that fits is taken: tiles that keep the inner loop
free of spills, which `headforce kernels` shows and a test asserts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import HeadforceError

TUNING = Path(__file__).with_name("tuning.json")
"""The table of the package."""
VARIABLE = "HEADFORCE_TUNING"
"""The environment variable that names a table to be read in its place."""


@dataclass(frozen=True)
class Config:
    """Tiles of `block_m` query rows and `block_n` keys, of which `stages` are under way.

    With `descriptors`, whole blocks are loaded by tensor descriptors where the layout of the cache allows it.
    """

    block_m: int = 128
    block_n: int = 64
    warps: int = 8
    stages: int = 3
    descriptors: bool = False

    def shared_bytes(self, head_dim: int, value_dim: int, itemsize: int) -> int:
        """About how much shared memory a program takes: the tile of the query, and blocks of keys and values.

        Widths are those of tiles, that is, padded. What Triton takes is in the report of `headforce kernels`.
        """
        return itemsize * (self.block_m * head_dim + self.stages * self.block_n * (head_dim + value_dim))


Tiles = dict[tuple[str, str, str, int], Config]
"""What was measured, by kernel, architecture, dtype and width."""


@dataclass(frozen=True)
class Architecture:
    """`shared`: bytes of shared memory that a program may have."""

    shared: int


ARCHITECTURES = {
    "sm80": Architecture(166912),
    "sm86": Architecture(101376),
    "sm89": Architecture(101376),
    "sm90": Architecture(232448),
    "sm100": Architecture(232448),
    "sm120": Architecture(101376),
    "gfx942": Architecture(65536),
}

INTERPRETED = Config(32, 32, descriptors=True)
"""Small, as the interpreter takes its time by the block, and tests are to see several blocks."""


def candidates(kernel: str, architecture: str, width: int, dtype: torch.dtype) -> Sequence[Config]:
    """Tiles for a kernel and heads of `width` columns, the best guess first; those that `headforce tune` tries, too."""
    if kernel == "hopper_attention":
        stages = 2 if width == 128 else 4
        return Config(128, 128, 4, stages, True), Config(128, 64, 4, stages + 1, True), Config(128, 64, 4, 4, True)
    wide = width > 128
    if dtype == torch.float32:
        return (Config(16, 16, 4, 1),) if wide else (Config(32, 32, 8, 2), Config(16, 16, 4, 1))
    if architecture.startswith("gfx"):
        return (Config(32, 32, 4, 1), Config(16, 16, 4, 1)) if wide else (Config(64, 32, 4, 2), Config(32, 32, 4, 1))
    if wide:
        return Config(64, 32, 8, 2), Config(32, 32, 4, 1), Config(16, 16, 4, 1)
    if architecture == "sm90":
        return (
            Config(128, 64, 8, 3, descriptors=True),
            Config(128, 64, 8, 3),
            Config(128, 128, 8, 2, descriptors=True),
            Config(128, 128, 8, 2),
            Config(128, 64, 8, 4, descriptors=True),
            Config(64, 128, 4, 2, descriptors=True),
            Config(64, 64, 4, 3, descriptors=True),
        )
    if architecture == "sm100":
        return Config(128, 64, 8, 3, descriptors=True), Config(128, 64, 8, 3), Config(128, 32, 8, 2)
    return Config(128, 32, 8, 2), Config(128, 32, 8, 3), Config(64, 32, 4, 2), Config(32, 32, 4, 1)


def config_of(kernel: str, architecture: str, head_dim: int, value_dim: int, dtype: torch.dtype) -> Config:
    """The configuration of a kernel for an architecture of `ARCHITECTURES`.

    Raises HF-KERNEL for an architecture that nobody has looked at, and where no candidate fits, and HF-OPTION for a
    table that cannot be read.
    """
    if architecture not in ARCHITECTURES:
        raise HeadforceError("HF-KERNEL", found=f"architecture {architecture!r}", needed=", ".join(ARCHITECTURES))
    widths = block_width(head_dim), block_width(value_dim)
    tuned = _tuned(tuning_table()).get((kernel, architecture, str(dtype).removeprefix("torch."), max(widths)))
    if tuned is not None:
        return tuned
    limit = ARCHITECTURES[architecture].shared
    needs = {c: c.shared_bytes(*widths, dtype.itemsize) for c in candidates(kernel, architecture, max(widths), dtype)}
    for config, need in needs.items():
        if need <= limit:
            return config
    raise HeadforceError(
        "HF-KERNEL",
        found=f"heads of {head_dim} and {value_dim} columns of {dtype}, which take {min(needs.values())} bytes of "
        "shared memory",
        needed=f"at most {limit} bytes on {architecture}",
    )


def block_width(width: int) -> int:
    """The width of a tile that holds `width` columns: the next power of two, 16 at least."""
    return max(16, 1 << (width - 1).bit_length())


@cache
def architecture_of(device: torch.device) -> str:
    """The name of a GPU's architecture, such as sm90; the nearest older one that is known for a minor version."""
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}" if f"sm{major}{minor}" in ARCHITECTURES else f"sm{major}0"


def tuning_entry(
    kernel: str, architecture: str, dtype: torch.dtype, width: int, config: Config, measured: dict[str, Any]
) -> dict[str, Any]:
    """A line of `tuning.json`: for which kernel, which tiles, and what was measured where."""
    name = str(dtype).removeprefix("torch.")
    place = {"kernel": kernel, "architecture": architecture, "dtype": name, "width": width}
    return {**place, "config": asdict(config), "measured": measured}


def tuning_table() -> Path:
    """The table that is read: that of `HEADFORCE_TUNING`, or that of the package."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else TUNING


@cache
def _tuned(table: Path) -> Tiles:
    return read_tiles(table)


def read_tiles(table: Path) -> Tiles:
    """What a table says. Raises HF-OPTION for a file that cannot be read, or that is no such table."""
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))["entries"]
        return {(e["kernel"], e["architecture"], e["dtype"], e["width"]): Config(**e["config"]) for e in entries}
    except (OSError, ValueError, LookupError, TypeError) as error:  # ValueError: no JSON, or other bytes than UTF-8
        raise HeadforceError(
            "HF-OPTION",
            site=str(table),
            found=f"a file that cannot be read as a table of tiles ({error!r})",
            needed="a table that `headforce tune` wrote",
            hint=f"{VARIABLE} names the table that is read (docs/kernels.md).",
        ) from error
