"""Compiling kernels for GPUs that this machine does not have, and reading what came out.

Triton brings its assembler and disassembler along, so registers, spills, shared memory and matrix instructions of a
kernel are known without a device or a driver. Speed is not.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..errors import HeadforceError
from . import interpreter
from .config import ARCHITECTURES, Config, config_of
from .ragged_attention import combine_parts, ragged_attention

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel.

    Attributes:
        kernel, architecture, dtype, head_dim, rotated, config: what was compiled, and for what.
        registers: of a thread. local: bytes of local memory of a thread, for spilled registers or for sine and cosine.
        inner_spills: instructions in the inner loop that move registers to local memory or back; on AMD, anywhere.
        shared: bytes of shared memory of a program, of the `shared_limit` that the architecture has.
        matrix: matrix instructions, all in all (wgmma, mma, tcgen05 or mfma). binary: the cubin or hsaco.
    """

    kernel: str
    architecture: str
    dtype: str
    head_dim: int
    rotated: bool
    config: Config
    registers: int
    local: int
    inner_spills: int
    shared: int
    shared_limit: int
    matrix: int
    binary: bytes

    def to_json(self) -> dict[str, Any]:
        """Everything but the binary, as plain data."""
        plain = {name: value for name, value in vars(self).items() if name not in ("binary", "config")}
        return {**plain, "config": vars(self.config), "fits": self.fits}

    @property
    def fits(self) -> bool:
        """True when a program fits into the shared memory of the architecture."""
        return self.shared <= self.shared_limit


def compile_attention(
    architecture: str, dtype: torch.dtype, head_dim: int, *, rotated: bool = True, config: Config | None = None
) -> Compiled:
    """The portable kernel, compiled for an architecture of `ARCHITECTURES`.

    Raises HF-KERNEL for another architecture, and in a process that runs kernels in the interpreter.
    """
    config = config or config_of(architecture, head_dim, dtype, parts=8)
    block_d = max(16, triton.next_power_of_2(head_dim))
    constants = {
        "D": head_dim,
        "DV": head_dim,
        "BLOCK_D": block_d,
        "BLOCK_DV": block_d,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "PARTS": config.parts,
        "STAGES": config.stages,
        "ROTATED": rotated,
        "SPLIT_HALF": False,
        "LSE": False,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }
    return _compiled(ragged_attention, architecture, dtype, head_dim, rotated, config, constants)


def compile_combine(architecture: str, dtype: torch.dtype, head_dim: int) -> Compiled:
    """The kernel that puts parts together; see `compile_attention`."""
    config = config_of(architecture, head_dim, dtype, parts=8)
    block_d = max(16, triton.next_power_of_2(head_dim))
    constants = {"DV": head_dim, "BLOCK_DV": block_d, "BLOCK_M": config.block_m, "LSE": False}
    return _compiled(combine_parts, architecture, dtype, head_dim, False, config, constants)


def compile_all(
    architectures: Iterable[str], dtypes: Iterable[torch.dtype] = tuple(TYPES), head_dims: Iterable[int] = (64, 128)
) -> list[Compiled]:
    """Every kernel for every architecture, dtype and head dim, with and without rotation."""
    found = []
    dtypes, head_dims = tuple(dtypes), tuple(head_dims)
    for architecture in architectures:
        for dtype in dtypes:
            for dim in head_dims:
                found += [compile_attention(architecture, dtype, dim, rotated=rotated) for rotated in (False, True)]
                found.append(compile_combine(architecture, dtype, dim))
    return found


def save(compiled: Iterable[Compiled], folder: Path) -> list[dict[str, Any]]:
    """Writes every binary and `report.json` to a folder; the report, which names the files."""
    folder.mkdir(parents=True, exist_ok=True)
    report = []
    for kernel in compiled:
        kind = "hsaco" if kernel.architecture.startswith("gfx") else "cubin"
        turned = "_rotated" if kernel.rotated else ""
        name = f"{kernel.kernel}_{kernel.architecture}_{kernel.dtype}_{kernel.head_dim}{turned}.{kind}"
        (folder / name).write_bytes(kernel.binary)
        report.append({**kernel.to_json(), "binary": name})
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _compiled(
    kernel: Any,
    architecture: str,
    dtype: torch.dtype,
    head_dim: int,
    rotated: bool,
    config: Config,
    constants: dict[str, Any],
) -> Compiled:
    if interpreter.enabled():
        raise HeadforceError(
            "HF-KERNEL", found="TRITON_INTERPRET=1", needed="a process without it: interpreted kernels are not compiled"
        )
    if architecture not in ARCHITECTURES:
        raise HeadforceError("HF-KERNEL", found=f"architecture {architecture!r}", needed=", ".join(ARCHITECTURES))
    limit = ARCHITECTURES[architecture].shared
    signature = _signature(kernel, TYPES[dtype], constants)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=_attributes(kernel))
    options = {"num_warps": config.warps, "num_stages": config.stages}
    binary = triton.compile(source, target=_target(architecture), options=options)
    registers, local, inner_spills, matrix = _read(binary.asm)
    return Compiled(
        kernel.__name__,
        architecture,
        TYPES[dtype],
        head_dim,
        rotated,
        config,
        registers,
        local,
        inner_spills,
        binary.metadata.shared,
        limit,
        matrix,
        binary.asm.get("cubin") or binary.asm["hsaco"],
    )


def _target(architecture: str) -> GPUTarget:
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm")), 32)


def _signature(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    kinds = {"reads": "*i32", "runs": "*i32", "theta": "*fp64", "scale": "fp32"}
    kinds |= dict.fromkeys(("lse", "part_out", "part_lse"), "*fp32")
    kinds |= dict.fromkeys(("query", "key", "value", "out"), f"*{dtype}")
    return {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in kernel.arg_names}


def _attributes(kernel: Any) -> dict[tuple[int, ...], list[list[Any]]]:
    """What a launch finds out about its arguments: pointers and strides are multiples of 16."""
    aligned = ("query", "key", "value", "out", "lse", "part_", "reads", "runs", "theta", "lse_")
    names = kernel.arg_names
    return {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.startswith(aligned)}


def _read(asm: Any) -> tuple[int, int, int, int]:
    """Registers, bytes of local memory, spilling instructions of the inner loop, and matrix instructions."""
    if "amdgcn" in asm:
        text = asm["amdgcn"]
        registers = sum(int(n) for n in re.findall(r"\.(?:vgpr|agpr)_count:\s+(\d+)", text)[:2])
        spills = sum(4 * int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", text))
        anywhere = len(re.findall(r"\bscratch_(?:load|store)", text))
        return registers, spills, anywhere if spills else 0, len(re.findall(r"\bv_mfma", text))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        sass = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise HeadforceError("HF-KERNEL", found=usage.strip()[:200], needed="a report of cuobjdump")
    matrix = len(re.findall(r"\b(?:HGMMA|HMMA|UTC\w*MMA)", sass))
    return int(found[1]), int(found[2]) + int(found[3]), _inner_spills(sass), matrix


def _inner_spills(sass: str) -> int:
    """Loads from and stores to local memory in the loops that multiply matrices (or, in float32, that take powers)."""
    labels: dict[str, int] = {}
    code: list[tuple[str, str]] = []
    for line in sass.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(code)
        instruction = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line)
        if instruction:
            code.append((instruction[1], instruction[2]))
    loops = {
        (labels[name], i)
        for i, (name_, rest) in enumerate(code)
        if name_.startswith("BRA")
        for name in re.findall(r"\.L_\w+", rest)
        if labels.get(name, i + 1) <= i
    }
    inner = [loop for loop in loops if not any(loop != o and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]
    bodies = [[name for name, _ in code[a : b + 1]] for a, b in inner]
    heavy = [body for body in bodies if any(re.match(r"HGMMA|HMMA|UTC\w*MMA|MUFU\.EX2", name) for name in body)]
    return sum(name.startswith(("LDL", "STL")) for body in heavy for name in body)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
