"""The commands `headforce run` and `headforce compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..choices import new_file
from ..errors import HeadforceError

_COMMAND = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--policy", required=True, help="A policy file, or the name of a published system."),
        click.option("--labels", type=click.Path(), help="The label file of a published system that needs one."),
        click.option("--mode", type=click.Choice(["owned", "view"]), default="owned", show_default=True),
        click.option("--target", help="How attention is computed [default: the best for the device]."),
        click.option("--inner", help="Inner compiler: inductor (the default), eager, or another of torch."),
        click.option("--verify", help="What is checked meanwhile: off, plan, site or full [default: off]."),
        click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(context_settings=_COMMAND)
@_model_options
@click.option("--seed", type=int, help="Of random, numpy and torch, set before the script begins.")
@click.option(
    "--report", type=click.Path(path_type=Path), callback=new_file, help="Also write the report to this file, as JSON."
)
def run(command: tuple[str, ...], report: Path | None, **choices: Any) -> None:
    """Run COMMAND, somebody's own script, unedited; its models get the policy and are compiled.

    \b
    headforce run --policy longlive -- python inference.py ARGS...

    Ends with the exit status of the command, or with 1 if that ended well and nothing was rewritten.
    """
    from .launcher import execute
    from .settings import RunSettings
    from .summary import summary

    finished = execute(command, RunSettings(**choices).checked())
    click.echo(summary(finished), err=True)
    if report is not None:
        try:
            report.write_text(json.dumps(finished.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(report), error.strerror) from error
    if finished.code:
        sys.exit(finished.code)
    try:
        finished.check()
    except HeadforceError as error:
        click.echo(f"headforce: {error}", err=True)
        sys.exit(1)


@click.command(context_settings=_COMMAND)
@_model_options
@click.option("--video", "videos", required=True, help="The files that the script writes its videos to, a pattern.")
@click.option("--out", type=click.Path(path_type=Path), default="out/compare", show_default=True, help="Results.")
@click.option("--layout", help="The axes of a tensor, such as BCFHW [default: BFCHW, FCHW or FHW].")
@click.option("--chunks", help="Chunk sizes of the videos, such as 3x7 [default: as the model was called].")
@click.option("--rate", type=click.IntRange(1), default=16, show_default=True, help="Pictures a second of the films.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random, numpy and torch, on both sides.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def compare(
    command: tuple[str, ...],
    videos: str,
    out: Path,
    layout: str | None,
    chunks: str | None,
    rate: int,
    as_json: bool,
    **choices: Any,
) -> None:
    """Run COMMAND twice with one seed, as it is and under the policy, and compare its videos.

    \b
    headforce compare --policy longlive --video "{out}/*.mp4" -- python inference.py --output_folder {out}

    {out} stands for a folder that each side has for itself; elsewhere files that a side has written are moved away.
    """
    from ..policy import Schedule
    from .compare import Wanted
    from .compare import compare as compared
    from .settings import RunSettings
    from .summary import table
    from .video import check_layout

    wanted = Wanted(command, videos, out, layout, Schedule.parse(chunks) if chunks else None, rate)
    settings = RunSettings(**choices).checked()
    if layout is not None:
        check_layout(layout)
    try:
        report = compared(wanted, settings)
    except HeadforceError as error:
        click.echo(f"headforce: {error}", err=True)
        sys.exit(1)
    click.echo(json.dumps(report) if as_json else table(report, out))
