"""Starts the command, waits for it, and says what became of its models."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import HeadforceError
from .settings import EAGER, RunSettings

PYTHONS = ("python", "python3")
"""Words for an interpreter that name none in particular: they mean the one that runs headforce."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Attributes:
        command: as it was started. code: its exit status, 128 + n after signal n. seconds: from start to end.
        processes: the record of each of its processes that called a model, oldest first (`record.py`).
    """

    command: list[str]
    settings: RunSettings
    code: int
    seconds: float
    processes: list[dict[str, Any]]

    @property
    def models(self) -> list[dict[str, Any]]:
        """The records of all models."""
        return [model for process in self.processes for model in process.get("models", [])]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "version": 1,
            "command": self.command,
            "policy": self.settings.policy,
            "mode": self.settings.mode,
            "exit_code": self.code,
            "seconds": self.seconds,
            "processes": self.processes,
        }

    def check(self) -> None:
        """Raises unless every model that was seen ran as it was asked for, and at least one did.

        HF-RUN-NOTHING if no attention was rewritten, HF-RUN-REFUSED if the script went on after a refusal, HF-EAGER if
        passes ran without the policy.
        """
        for model in self.models:
            if model["refusal"]:
                raise HeadforceError(
                    "HF-RUN-REFUSED", site=model["name"], found=model["refusal"], needed="every pass as asked for"
                )
            if model["misses"]:
                raise HeadforceError(
                    "HF-EAGER",
                    site=model["name"],
                    found=f"{model['misses']} launches of attention without the policy",
                    needed="none",
                )
        done = [model["passes"] if self.settings.mode == EAGER else model["launches"] for model in self.models]
        if not any(done):
            raise HeadforceError("HF-RUN-NOTHING", found=self._seen(), needed="a call of a known model with a cache")

    def _seen(self) -> str:
        lacking = [f"{p['python']} cannot import headforce ({p['error']})" for p in self.processes if "error" in p]
        if lacking:
            return "; ".join(lacking)
        if not self.processes:
            return "no Python process that called a module of torch"
        if self.models:
            return "calls of " + ", ".join(model["name"] for model in self.models) + " without a cache only"
        called, compiled = (_names(self.processes, key) for key in ("called", "compiled"))
        return f"calls of {called}" + (f"; torch.compile by the script of {compiled}" if compiled else "")


def _names(processes: Sequence[dict[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(name for process in processes for name in process[key]))


def execute(command: Sequence[str], settings: RunSettings) -> Finished:
    """Runs a command to its end, its models treated as `settings` say. Standard streams are the command's.

    SIGTERM and SIGHUP are passed on; an interrupt from the keyboard reaches the command by itself.
    Raises HF-RUN-START if there is no such program.
    """
    command = resolved(command)
    with tempfile.TemporaryDirectory(prefix="headforce-run-") as records, _signals() as pass_on:
        begun = time.monotonic()
        try:
            child = subprocess.Popen(command, env=replace(settings, records=records).environment(os.environ))
        except OSError as error:
            raise HeadforceError(
                "HF-RUN-START", found=f"{command[0]}: {error.strerror}", needed="a program or a Python script"
            ) from error
        pass_on.append(child)
        code = child.wait()
        found = [json.loads(path.read_text(encoding="utf-8")) for path in _by_age(Path(records))]
    return Finished(command, settings, 128 - code if code < 0 else code, time.monotonic() - begun, found)


def resolved(command: Sequence[str]) -> list[str]:
    """The command with the interpreter filled in: `python`, and a script alone, mean the one that runs headforce."""
    first, *rest = command
    if first in PYTHONS:
        return [sys.executable, *rest]
    return [sys.executable, first, *rest] if first.endswith(".py") else [first, *rest]


def _by_age(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)


@contextlib.contextmanager
def _signals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Signals inside go to the processes in the list that is yielded."""
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(number)

    # Not SIG_IGN, which the command would inherit.
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
