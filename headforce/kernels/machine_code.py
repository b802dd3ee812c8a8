"""Reading a compiled kernel: registers, local memory, and what its inner loop is made of.

Triton brings the assembler's own tools along, so a cubin can be read without a device or a driver.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import triton

from ..errors import HeadforceError

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_MATRIX = re.compile(r"HGMMA|HMMA|UTC\w*MMA")
_SIGNS = {
    "HGMMA": "G",
    "HMMA": "M",
    "UTCHMMA": "G",
    "MUFU.EX2": "e",
    "WARPGROUP.DEPBAR": "w",
    "UTMALDG": "T",
    "SYNCS": "s",
    "BAR": "B",
}


@dataclass(frozen=True)
class MachineCode:
    """What the compiler made of a kernel.

    Attributes:
        registers: of a thread. local: bytes of local memory of a thread, for spilled registers or for sine and cosine.
        inner_spills: instructions of such a round that move registers to local memory or back; on AMD, anywhere.
        matrix: matrix instructions, all in all (wgmma, mma, tcgen05 or mfma). wgmma: those of Hopper among them.
        loop: instructions of a round of the inner loop, over the blocks of a run; 0 where that was not read.
        order: how that loop goes on: G wgmma or tcgen05, M mma, e exponential, w wait for wgmma, T load of a tile by
            descriptor, s barrier in shared memory, B barrier of the program; with counts. `G8we34G4` has no
            exponential under way beside a product, `G3e9G1e10G4` has.
    """

    registers: int
    local: int
    inner_spills: int
    matrix: int
    wgmma: int = 0
    loop: int = 0
    order: str = ""


@dataclass(frozen=True)
class Instruction:
    """`jumps`: labels where it may go on. `ends`: it never goes on with the next instruction."""

    name: str
    jumps: tuple[str, ...]
    ends: bool


def read_amd(text: str) -> MachineCode:
    """From the assembler text of an AMD kernel."""
    registers = sum(int(n) for n in re.findall(r"\.(?:vgpr|agpr)_count:\s+(\d+)", text)[:2])
    spilled = sum(4 * int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", text))
    anywhere = len(re.findall(r"\bscratch_(?:load|store)", text))
    return MachineCode(registers, spilled, anywhere if spilled else 0, len(re.findall(r"\bv_mfma", text)))


def read_cubin(cubin: bytes) -> MachineCode:
    """From the binary of an NVIDIA kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _instructions(_run("nvdisasm", "-c", file.name))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise HeadforceError("HF-KERNEL", found=usage.strip()[:200], needed="a report of cuobjdump")
    names = [instruction.name for instruction in code[0]]
    # The blocks of a run; runs that are shorter than a block may have become a loop of their own, with more around it.
    loop = max(inner_loops(*code), key=lambda body: sum(map(_heavy, body)) / len(body), default=[])
    return MachineCode(
        registers=int(found[1]),
        local=int(found[2]) + int(found[3]),
        inner_spills=sum(name.startswith(("LDL", "STL")) for name in loop),
        matrix=sum(bool(_MATRIX.match(name)) for name in names),
        wgmma=sum(name.startswith("HGMMA") for name in names),
        loop=len(loop),
        order=order_of(loop),
    )


def order_of(body: list[str]) -> str:
    """The order of a loop, see `MachineCode.order`."""
    signs = "".join(next((sign for start, sign in _SIGNS.items() if name.startswith(start)), "") for name in body)
    return re.sub(r"(.)\1*", lambda run: f"{run[1]}{len(run[0])}", signs)


def inner_loops(code: list[Instruction], labels: dict[str, int]) -> list[list[str]]:
    """What each round of the innermost loops executes that multiply matrices (or, in float32, that take powers).

    Code that waits for a barrier jumps out of a loop and back from far away, so loops are found in the graph of what
    follows what: a jump back to an instruction that dominates it closes one. What dominates all jumps back is executed
    in every round; the rest is for rounds that begin another run or mask a block.
    """
    flow = nx.DiGraph([(i, i + 1) for i, step in enumerate(code[:-1]) if not step.ends])
    targets = [(i, labels[name]) for i, step in enumerate(code) for name in step.jumps if name in labels]
    flow.add_edges_from(targets)
    flow = nx.DiGraph(flow.subgraph({0} | nx.descendants(flow, 0)))
    above = nx.immediate_dominators(flow, 0)
    bodies: dict[int, set[int]] = {}
    always: dict[int, set[int]] = {}
    for source, head in targets:
        if source not in flow or head not in (dominators := _dominators(source, above)):
            continue
        inside = nx.DiGraph(flow)
        inside.remove_node(head)
        body = {head, source} | (nx.ancestors(inside, source) if source != head else set())
        bodies[head] = bodies.get(head, set()) | body
        always[head] = always.get(head, body) & body & dominators
    heavy = {head: body for head, body in bodies.items() if any(_heavy(code[i].name) for i in body)}
    inner = [head for head, body in heavy.items() if not any(other < body for other in heavy.values())]
    return [[code[i].name for i in sorted(always[head])] for head in inner]


def _dominators(node: int, above: dict[int, int]) -> set[int]:
    """The node and all that every way to it passes."""
    found = {node}
    while (higher := above.get(node, node)) not in (node, None):
        found.add(higher)
        node = higher
    return found


def _heavy(name: str) -> bool:
    return bool(_MATRIX.match(name)) or name.startswith("MUFU.EX2")


def _instructions(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    """Every instruction, and where labels are."""
    labels: dict[str, int] = {}
    code: list[Instruction] = []
    for line in sass.splitlines():
        label = re.match(r"\s*(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(code)
        found = re.search(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line)
        if found:
            condition, name, rest = found.groups()
            jumps = tuple(re.findall(r"\.L_\w+", rest)) if name.startswith("BRA") else ()
            # A branch may carry its condition as an operand: `BRA P0, label`, `BRA.U !UP0, label`.
            always = condition is None and not re.match(r"\s*!?U?P\w+,", rest)
            code.append(Instruction(name, jumps, always and name.startswith(("BRA", "EXIT", "RET"))))
    return code, labels


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
