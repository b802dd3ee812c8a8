"""Compiling kernels for GPUs that this machine does not have, and reading what came out. Speed is not among it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

from ..errors import HeadforceError
from . import interpreter
from .config import ARCHITECTURES
from .hopper_attention import tile_layout
from .machine_code import MachineCode, read_amd, read_cubin
from .spec import Spec

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        kernel, spec, architecture: what was compiled, and for what.
        code: what the compiler made of it.
        shared: bytes of shared memory of a program, of the `shared_limit` that the architecture has.
        ir: Triton's text of the kernel, as early as there is one. binary: the cubin or hsaco.
    """

    kernel: str
    architecture: str
    spec: Spec
    code: MachineCode
    shared: int
    shared_limit: int
    ir: str
    binary: bytes

    @property
    def fits(self) -> bool:
        """True when a program fits into the shared memory of the architecture."""
        return self.shared <= self.shared_limit

    @property
    def file_name(self) -> str:
        """A name for the binary."""
        kind = "hsaco" if self.architecture.startswith("gfx") else "cubin"
        return f"{file_stem(self.kernel, self.spec, self.architecture)}.{kind}"

    def to_json(self) -> dict[str, Any]:
        """Everything but texts and binaries, as plain data."""
        spec = self.spec
        return {
            "kernel": self.kernel,
            "architecture": self.architecture,
            "dtype": TYPES[spec.dtype],
            "head_dim": spec.head_dim,
            "rotated": spec.rotation is not None and self.kernel != "combine_parts",
            "spec": str(spec),
            "config": vars(spec.config),
            **vars(self.code),
            "shared": self.shared,
            "shared_limit": self.shared_limit,
            "fits": self.fits,
        }


def file_stem(kernel: str, spec: Spec, architecture: str) -> str:
    """A name for the files of a kernel."""
    marks = [kernel, architecture, TYPES[spec.dtype], str(spec.head_dim)]
    marks += ["rotated"] if spec.rotation and kernel.endswith("attention") else []
    return "_".join(marks)


def compile_kernel(kernel: Any, spec: Spec, architecture: str) -> Compiled:
    """A generated kernel of a spec, compiled for an architecture of `ARCHITECTURES`.

    Raises HF-KERNEL for another architecture, and in a process that runs kernels in the interpreter.
    """
    if interpreter.enabled():
        raise HeadforceError(
            "HF-KERNEL", found="TRITON_INTERPRET=1", needed="a process without it: interpreted kernels are not compiled"
        )
    if architecture not in ARCHITECTURES:
        raise HeadforceError("HF-KERNEL", found=f"architecture {architecture!r}", needed=", ".join(ARCHITECTURES))
    gluon = isinstance(kernel, GluonJITFunction)
    signature = _signature(kernel, spec, gluon)
    source = (GluonASTSource if gluon else ASTSource)(
        fn=kernel, signature=signature, constexprs={}, attrs=_attributes(kernel, signature)
    )
    options = {"num_warps": spec.config.warps, "num_stages": spec.config.stages}
    binary = triton.compile(source, target=_target(architecture), options=options)
    amd = architecture.startswith("gfx")
    return Compiled(
        kernel.__name__,
        architecture,
        spec,
        read_amd(binary.asm["amdgcn"]) if amd else read_cubin(binary.asm["cubin"]),
        binary.metadata.shared,
        ARCHITECTURES[architecture].shared,
        binary.asm["ttgir" if gluon else "ttir"],
        binary.asm["hsaco" if amd else "cubin"],
    )


def _target(architecture: str) -> GPUTarget:
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm")), 32)


def _signature(kernel: Any, spec: Spec, gluon: bool) -> dict[str, str]:
    cache = TYPES[spec.cache_dtype]
    kinds = {"reads": "*i32", "runs": "*i32", "pages": "*i64", "theta": "*fp64", "scale": "fp32"}
    kinds |= dict.fromkeys(("lse", "part_out", "part_lse", "angles", "query_turn", "key_turn"), "*fp32")
    kinds |= dict.fromkeys(("query", "out", "turned"), f"*{TYPES[spec.dtype]}")
    kinds |= dict.fromkeys(("key", "value", "k_pool", "v_pool"), f"*{cache}")
    for name, width in (("key_tiles", spec.block_d), ("value_tiles", spec.block_dv)):
        block = [spec.config.block_n, width]
        layout = f",{tile_layout(block, spec.cache_dtype)!r}" if gluon else ""
        kinds[name] = f"tensordesc<{cache}{block}{layout}>"
    return {name: kinds.get(name, "i32") for name in kernel.arg_names}


def _attributes(kernel: Any, kinds: dict[str, str]) -> dict[tuple[int, ...], list[list[Any]]]:
    """What a launch finds out about its arguments: pointers and strides are multiples of 16."""
    names = ("query", "key", "value", "out", "lse", "turned")
    aligned = [
        i
        for i, name in enumerate(kernel.arg_names)
        if kinds[name].startswith("*") or (name.startswith(names) and kinds[name] == "i32")
    ]
    return {(i,): [["tt.divisibility", 16]] for i in aligned}
