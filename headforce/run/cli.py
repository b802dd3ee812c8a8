"""The commands `headforce run` and `headforce compare`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import HeadforceError

_COMMAND = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _model_options(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.option("--policy", required=True, help="A policy file, or the name of a published system."),
        click.option("--labels", type=click.Path(), help="The label file of a published system that needs one."),
        click.option("--mode", type=click.Choice(["owned", "view"]), default="owned", show_default=True),
        click.option("--target", help="How attention is computed [default: the best for the device]."),
        click.option("--inner", help="Inner compiler: inductor (the default), eager, or another of torch."),
        click.option("--verify", type=click.Choice(["off", "plan"]), default="off", show_default=True),
        click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(context_settings=_COMMAND)
@_model_options
@click.option("--seed", type=int, help="Of random, numpy and torch, set before the script begins.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the report to this file, as JSON.")
def run(command: tuple[str, ...], report: Path | None, **choices: Any) -> None:
    """Run COMMAND, somebody's own script, unedited; its models get the policy and are compiled.

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
