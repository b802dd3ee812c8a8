"""The folder that a failed check leaves: all that it takes to see the failure again, and nothing outside of it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...errors import HeadforceError
from ...folder import Folder
from ...policy import Policy
from ..plan import ChunkPlan, HeadPlan
from .case import Case
from .shrink import shrink

KERNELS = {"triton": "ragged_attention", "hopper": "hopper_attention"}
"""Targets that launch a generated kernel, and its template."""

REPRO = '''"""{summary}

`python repro.py` runs the launch of this folder again and compares it with attention in float64; the exit status is 1
while it fails. It needs headforce{imports_text}.
"""

import sys
from pathlib import Path

{imports}from headforce.lowering.verify.case import Case

found = Case.load(Path(__file__).parent).deviation()
print(found or "within the budget")
sys.exit(found is not None)
'''
PLAN_REPRO = '''"""{summary}

`python repro.py` plans a stream of such chunks, behind a shorter one where frame 0 does not begin one of them, and
compares every plan with the oracle; the exit status is 1 while one differs, and 2 where the stream is refused for
another reason. It needs headforce.
"""

import sys
from pathlib import Path

from headforce.errors import HeadforceError
from headforce.lowering.stream import Stream
from headforce.lowering.verify import check_plan
from headforce.policy import Policy, parse_rule

policy = Policy.load(Path(__file__).parent / "policy.yaml")
stream = Stream(policy.bind(layers={layers}, heads={heads}, tokens={tokens}, native=parse_rule({native!r})), {batch})
first = {start} % {frames}
chunks = [(0, first)] * (first > 0) + [(start, {frames}) for start in range(first, {start} + 1, {frames})]
try:
    for chunk in chunks:
        stream.begin(*chunk)
        check_plan(stream)
except HeadforceError as error:
    print(error)
    sys.exit(1 if error.code == "HF-VERIFY-PLAN" else 2)
print("every plan is what the oracle says")
'''


def write_launch(
    folder: Path | None, error: HeadforceError, case: Case, policy: Policy | None, plan: ChunkPlan | None
) -> HeadforceError:
    """Writes a launch that failed, made as small as it goes; the error, which names the folder of it.

    Without a folder nothing is written, and the error is as it was.
    """
    if folder is None:
        return error
    small = shrink(case) if case.fails else case
    numbers = small.files()
    module = json.loads(numbers["case.json"])["registered_by"]
    own = module.startswith("headforce.lowering.targets")
    files: dict[str, bytes] = {
        **numbers,
        "repro.py": REPRO.format(
            summary=_quoted(error),
            imports="" if own else f"import {module}  # registers the target\n",
            imports_text="" if own else f" and {module}",
        ).encode(),
        "error.txt": f"{error}\n".encode(),
        **_of_policy(policy, plan),
    }
    if small.target in KERNELS:
        from ..attention import source_of_launch  # lazy: needs triton, as the target does

        files["kernel.py"] = source_of_launch(KERNELS[small.target], small.launch).encode()
    return _written(folder, error, files, small.digest)


def write_plan(
    folder: Path | None,
    error: HeadforceError,
    policy: Policy,
    plan: ChunkPlan,
    tables: Mapping[str, Sequence[torch.Tensor]],
    **bound: Any,
) -> HeadforceError:
    """Writes a plan that the oracle does not agree with. `bound`: layers, heads, tokens, native and batch.

    Without a folder nothing is written, and the error is as it was.
    """
    if folder is None:
        return error
    chunk = plan.chunk
    repro = PLAN_REPRO.format(summary=_quoted(error), start=chunk.start, frames=chunk.frames, **bound)
    stored = json.dumps({name: [table.tolist() for table in of] for name, of in tables.items()})
    files = {
        "repro.py": repro.encode(),
        "error.txt": f"{error}\n".encode(),
        "tables.json": stored.encode(),
        **_of_policy(policy, plan),
    }
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()[:12]
    return _written(folder, error, files, digest)


def _quoted(error: HeadforceError) -> str:
    """What an error says, as it may stand in a docstring."""
    return str(error).replace("\\", "\\\\").replace('"""', "'''")


def plan_json(plan: ChunkPlan) -> dict[str, Any]:
    """A plan as plain data: `heads[which[layer][row][head]]` reads, for its query frames, (frame, position)."""
    return {
        "chunk": {"index": plan.chunk.index, "start": plan.chunk.start, "frames": plan.chunk.frames},
        "which": plan.which.tolist(),
        "heads": [_head_json(head) for head in plan.heads],
    }


def _head_json(head: HeadPlan) -> dict[str, Any]:
    return {
        "reads_chunk": head.reads_chunk,
        "readings": [
            {
                "queries": list(reading.queries),
                "frames": [[int(frame), int(frame + shift)] for frame, shift in reading.frames],
                "parts": [
                    [item.store, *map(str, part.content), position]
                    for item in reading.parts
                    for part, position in zip(item.parts, item.positions, strict=True)
                ],
            }
            for reading in head.readings
        ],
    }


def _of_policy(policy: Policy | None, plan: ChunkPlan | None) -> dict[str, bytes]:
    files = {} if policy is None else {"policy.yaml": policy.dumps().encode()}
    if plan is not None:
        files["plan.json"] = (json.dumps(plan_json(plan)) + "\n").encode()
    return files


def publish(place: Path, files: Mapping[str, bytes]) -> Path:
    """Writes the folder of a failure, and the versions it was seen with. HF-OPTION where nothing can be written."""
    with Folder(place, "HF-OPTION") as out:
        for name, data in {**files, "versions.json": _versions()}.items():
            (out.staging / name).write_bytes(data)
        out.publish()
    return place


def _versions() -> bytes:
    found = {"headforce": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return (json.dumps(found, indent=1) + "\n").encode()


def _written(folder: Path, error: HeadforceError, files: dict[str, bytes], digest: str) -> HeadforceError:
    """The error, which names the folder of it."""
    place = publish(folder / f"{error.code.removeprefix('HF-').lower()}-{digest}", files)
    return HeadforceError(
        error.code,
        site=error.site,
        found=error.found,
        needed=error.needed,
        hint=f"{error.hint} It is written to {place}; `python {place / 'repro.py'}` shows it again.",
    )
