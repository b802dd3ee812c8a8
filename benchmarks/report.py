"""What every benchmark reports: the machine, one JSON file, one Markdown table, and where it helps one picture."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import torch

from headforce import __version__

LONGEST = 100
"""Characters of a reason in a table. The JSON file has the whole line."""


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, as `machine.py` sees it, and the device."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "headforce": __version__,
        "packages": {package: machine.version(package) for package in (*machine.REQUIRED, *machine.OPTIONAL)},
        "commit": commit(),
        "device": "cpu",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "capability": [properties.major, properties.minor],
            "processors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def commit() -> str | None:
    """The commit of the working tree, with a + behind it where files differ; None outside of a checkout."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def processor() -> str | None:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def caption(found: dict[str, Any]) -> str:
    """One line: what the numbers were measured on."""
    what = found["device"] if found["device"] != "cpu" else f"{found['cores']} cores of {found['processor']}"
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "triton") if found["packages"][name])
    at = f" at {found['commit']}" if found["commit"] else ""
    return f"{what}, Python {found['python']}, {versions}, headforce {found['headforce']}{at}"


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, where there are both."""
    return a / b if a is not None and b else None


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the head first, as a Markdown table; the last column may be as long as it likes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "| " + " | ".join([cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)]) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in (*widths, 1)) + "|")
    return "\n".join(lines)


def remark(result: dict[str, Any]) -> str:
    """The last cell of a row: a note, or why there is no time."""
    if result["state"] == "ok":
        return result["note"]
    state = "WRONG" if result["state"] == "wrong" else result["state"]
    reason = result["reason"].replace("|", "\\|")
    return f"{state}: {reason if len(reason) <= LONGEST else reason[: LONGEST - 3] + '...'}"


def write(report: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a run that is cut off leaves what it has finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    draft.replace(path)
