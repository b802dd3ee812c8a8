"""The demo from end to end: measure, check, draw, write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..folder import Folder
from .checks import run_checks
from .measure import measure
from .pictures import draw_pictures
from .progress import Progress
from .report import build_report
from .settings import Settings

RECOMPILE_LIMIT = 64


def run_demo(settings: Settings) -> dict[str, Any]:
    """Runs the demo, writes its folder and returns the report. Some of the report's `checks` may not hold.

    Raises HF-DEMO if something it needs is missing, and whatever the policy's file or the compiler raise.
    """
    with Folder(settings.out, "HF-DEMO") as folder, Progress() as progress, ExitStack() as stack:
        stack.enter_context(_torch_settings(settings.threads))
        measured = measure(settings, progress, stack)
        report = build_report(measured, run_checks(measured))
        draw_pictures(measured, folder)
        folder.write_json("report.json", report)
        folder.publish()
    return report


@contextmanager
def _torch_settings(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    torch._dynamo.reset()
    try:
        # Two compilers share the blocks' code here, and their graphs together pass Dynamo's usual limit of 8.
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            yield
    finally:
        torch.set_num_threads(before)
