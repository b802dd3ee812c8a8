"""The command `headforce doctor`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import click

from ..choices import new_file


@click.command()
@click.argument("target", metavar="TARGET")
@click.option("--policy", help="A policy file, or the name of a published system, to see what it would keep and hold.")
@click.option("--labels", type=click.Path(path_type=Path), help="The label file of a system that needs one.")
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    callback=new_file,
    help="Also write it to this file, as a page of its own.",
)
def doctor(target: str, policy: str | None, labels: Path | None, as_json: bool, html: Path | None) -> None:
    """Say what headforce can do for a model that it has never seen, and what stands in the way.

    TARGET is package.module:NAME or FILE.py:NAME, a function that takes nothing and returns (model, args, kwargs) of a
    call; (model, [(args, kwargs), ...]) of several; or (model, function), where the function calls the model that it is
    given, which may also be a pipeline. A class will do if an adapter can make a small model of it.

    Exits with 0 if the model has self-attention with a history and all of it can be rewritten, as it is or after
    headforce.prepare; with 1 if not; with 2 if there is no answer.
    """
    from ..calls import load_example
    from ..presets import read_policy
    from .examine import examine

    if labels is not None and policy is None:
        raise click.UsageError("--labels needs --policy, the system whose labels they are")
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints is no part of the answer
        given = None if policy is None else read_policy(policy, labels)
        diagnosis = examine(load_example(target), given, policy)
    if html is not None:
        from ..whole_file import write_whole
        from .page import page

        try:
            write_whole(html, page(diagnosis))
        except OSError as error:
            raise click.FileError(str(html), error.strerror) from error
    if as_json:
        click.echo(json.dumps(diagnosis.to_json()))
    else:
        from rich.console import Console

        from .text import report

        Console().print(report(diagnosis), soft_wrap=True)
    sys.exit(0 if diagnosis.ok else 1)
