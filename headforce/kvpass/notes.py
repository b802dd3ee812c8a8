"""What is said and written about one graph: `HEADFORCE_LOGS` and `HEADFORCE_DUMP`.

    HEADFORCE_DUMP=dir      a folder for every graph, `dir/graph_000` and so on, with
        captured.py         the graph as Dynamo captured it
        sites.txt           its attention calls, and what became of each
        owned.py            the graph that headforce made of it, for every variant; it is not run from there
        chunk_000/          for every chunk that was planned in it: plan.json, and layer_00.json with the tables
        kernels/            the source of every kernel that it launches

All of it is written before it runs, and nothing outside the folder.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.fx import GraphModule

from .. import logs
from ..errors import HeadforceError
from ..lowering.codegen import sources_to
from ..lowering.plan import ChunkPlan, HeadPlan
from ..lowering.verify.failure import plan_json
from ..policy import FrameSet
from ..whole_file import write_whole
from .layers import Layer
from .report import Report
from .site import SiteReport

VARIABLE = "HEADFORCE_DUMP"

_said: weakref.ref[ChunkPlan] | None = None
"""The plan that was logged last."""


class Notes:
    """The log and the folder of one graph. Without either variable it does nothing.

    Args:
        module: the captured graph. report: its attention. verdict: what becomes of the sites that were found.
    """

    def __init__(self, module: GraphModule, report: SiteReport, verdict: str) -> None:
        logs.configure()
        self._folder = _new_folder()
        self._plan: ChunkPlan | None = None
        self._chunks = 0
        self._layers: set[int] = set()
        lines = Report()
        lines.add(verdict, report.found, report.refused, report.excluded)
        sites = [str(line).split("  ", 1)[1] for line in lines.sites]
        for line in sites:
            logs.SITES.info(line)
        logs.GRAPHS.info("captured %s: %d nodes", self._name, len(module.graph.nodes))
        self._write_graph("captured", module)
        self._write("sites.txt", "".join(f"{line}\n" for line in sites) or "no attention\n")

    @property
    def _name(self) -> str:
        return self._folder.name if self._folder is not None else "a graph"

    def lowered(self, variant: str, module: GraphModule) -> None:
        """A variant was made of the graph, and will be compiled."""
        logs.GRAPHS.info("%s of %s: %d nodes", variant, self._name, len(module.graph.nodes))
        self._write_graph(variant, module)

    @contextmanager
    def running(self, layers: Sequence[Layer]) -> Iterator[None]:
        """The graph runs for these layers; their chunk is planned."""
        plan = layers[0].caches.plan
        if plan is not None and (self._folder is not None or logs.PLAN.isEnabledFor(logging.INFO)):
            self._note_plan(plan, layers)
        if self._folder is None:
            yield
        else:
            with sources_to(self._folder / "kernels"):
                yield

    def _note_plan(self, plan: ChunkPlan, layers: Sequence[Layer]) -> None:
        chunk = f"chunk_{self._chunks - 1:03d}"
        if plan is not self._plan:
            self._plan, self._layers = plan, set()
            chunk = f"chunk_{self._chunks:03d}"
            self._chunks += 1
            _say(plan)
            self._write(f"{chunk}/plan.json", json.dumps(plan_json(plan), indent=1) + "\n")
        for layer in layers:
            if layer.number not in self._layers and self._folder is not None:
                self._layers.add(layer.number)
                names = ("reads", "runs", "pages")
                tables = {name: t.tolist() for name, t in zip(names, layer.caches.tables(layer), strict=False)}
                self._write(f"{chunk}/layer_{layer.number:02d}.json", json.dumps(tables) + "\n")

    def _write_graph(self, name: str, module: GraphModule) -> None:
        if self._folder is not None or logs.GRAPHS.isEnabledFor(logging.DEBUG):
            code = module.print_readable(print_output=False)
            logs.GRAPHS.debug("%s of %s:\n%s", name, self._name, code)
            self._write(f"{name}.py", code)

    def _write(self, name: str, text: str) -> None:
        if self._folder is not None:
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            write_whole(path, text)


def _new_folder() -> Path | None:
    """A folder that nobody else writes to; HF-OPTION if none can be made."""
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return None
    number = 0
    try:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(chosen) / f"graph_{number:03d}"
            try:
                folder.mkdir()
            except FileExistsError:  # of another graph, or of another process
                number += 1
            else:
                return folder
    except OSError as error:
        raise HeadforceError(
            "HF-OPTION", site=VARIABLE, found=f"{chosen}: {error.strerror}", needed="a folder that can be written"
        ) from error


def _say(plan: ChunkPlan) -> None:
    """Logs a plan once, however many graphs the passes of its chunk run in."""
    global _said
    if logs.PLAN.isEnabledFor(logging.INFO) and (_said is None or _said() is not plan):
        _said = weakref.ref(plan)
        logs.PLAN.info(_told(plan))
        logs.PLAN.debug("%s", plan_json(plan))


def _told(plan: ChunkPlan) -> str:
    """What the heads of a chunk read, in a line for each plan that some of them share."""
    counts = [int((plan.which == i).sum()) for i in range(len(plan.heads))]
    lines = [f"frames {plan.chunk.start} to {plan.chunk.stop - 1}"]
    lines += [f"  {count} heads: {_read(head)}" for head, count in zip(plan.heads, counts, strict=True) if count]
    return "\n".join(lines)


def _read(head: HeadPlan) -> str:
    told = []
    for reading in head.readings:
        parts = sum(len(item.parts) for item in reading.parts)
        text = str(FrameSet.of(reading.frames[:, 0].tolist())) + (f" and {parts} parts" if parts else "")
        told.append(text if len(head.readings) == 1 else f"query {reading.queries[0]}: {text}")
    return "; ".join(told)
